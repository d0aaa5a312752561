-- SPDX-License-Identifier: ISC
-- What became of every message, for a set time: tables by month that relay fills in batches, and
-- trace() that tells the story of one.

alter table postern.migration owner to postern_owner;
set role postern_owner;

insert into postern.setting values ('history_months', '3') on conflict do nothing;
comment on column postern.setting.name is 'scram_iterations: cost of new verifiers, 4096 to 65536. history_months: whole months that history is kept beside the current one, 1 to 120. server_secret: hides which users exist.';

create or replace function postern.setting_set(name text, value text) returns void
language plpgsql security definer set search_path = postern, pg_temp as $$
declare
    low integer := case setting_set.name when 'scram_iterations' then 4096 when 'history_months' then 1 end;
    high integer := case setting_set.name when 'scram_iterations' then 65536 when 'history_months' then 120 end;
    number integer := case when value ~ '^[0-9]{1,9}$' then value::integer end;
    before text;
begin
    if low is null then
        raise exception 'there is no setting "%"', left(setting_set.name, 60) using hint = 'scram_iterations or history_months.';
    end if;
    if number is null or number not between low and high then
        raise exception '% cannot be "%"', setting_set.name, coalesce(left(value, 60), '') using hint = format('A number from %s to %s.', low, high);
    end if;
    select s.value into before from postern.setting s where s.name = setting_set.name for update;
    update postern.setting s set value = number where s.name = setting_set.name;
    perform postern.note('setting_set', setting_set.name, format('%s -> %s', before, number));
end
$$;
comment on function postern.setting_set is 'Changes a setting: scram_iterations or history_months.';

-- ---- what is kept ----

-- No foreign keys: history outlives what it tells of, and is written without looking anything up.
create table postern.message (
    id text collate "C" not null,
    account bigint not null,
    login text not null,
    session text,
    sender text,
    from_domain text,
    message_id text collate "C",
    size bigint not null,
    recipients integer not null,
    accepted_at timestamptz not null
) partition by range (accepted_at);
create unique index message_key on postern.message (id, accepted_at);
create index message_message_id on postern.message (message_id) where message_id is not null;
create index message_account on postern.message (account, accepted_at);
comment on table postern.message is 'Messages that were accepted, and bounces that were made; by month of accepted_at.';
comment on column postern.message.id is 'Its id, as the log and the 250 show it.';
comment on column postern.message.account is 'Account that sent it, or whose mail a bounce is about.';
comment on column postern.message.login is 'Login of the account at that time.';
comment on column postern.message.session is 'Session that it came in: sid in the log.';
comment on column postern.message.sender is 'MAIL FROM; null: the null sender, of a bounce.';
comment on column postern.message.from_domain is 'Domain of the header From; null for a bounce.';
comment on column postern.message.message_id is 'The header''s Message-ID without its brackets.';
comment on column postern.message.size is 'Octets of header and body.';
comment on column postern.message.recipients is 'How many.';
comment on column postern.message.accepted_at is 'When it was accepted.';

create table postern.delivery (
    message text collate "C" not null,
    at timestamptz not null,
    number integer,
    attempt integer not null,
    outcome text not null,
    recipient text,
    upstream text,
    host text,
    reply text,
    signed text,
    notice text collate "C"
) partition by range (at);
create index delivery_message on postern.delivery (message);
comment on table postern.delivery is 'What came of each attempt for each recipient; by month of `at`.';
comment on column postern.delivery.message is 'Id of the message.';
comment on column postern.delivery.at is 'When.';
comment on column postern.delivery.number is 'Place of the recipient in the message; null: all that were left.';
comment on column postern.delivery.attempt is 'The message''s attempts so far.';
comment on column postern.delivery.outcome is 'delivered, refused, expired or deleted: settled. deferred: is tried again. delayed: the sender was told that it waits.';
comment on column postern.delivery.recipient is 'Address of the recipient.';
comment on column postern.delivery.upstream is 'Upstream that was tried.';
comment on column postern.delivery.host is 'Its host.';
comment on column postern.delivery.reply is 'What the host said, its id of the message included; or our own words.';
comment on column postern.delivery.signed is 'DKIM selectors that it was signed with.';
comment on column postern.delivery.notice is 'Id of the bounce or notice that tells the sender.';

create table postern.recipient_seen (
    account bigint not null,
    recipient bigint not null,
    seen_on date not null,
    primary key (account, recipient, seen_on)
) partition by range (seen_on);
comment on table postern.recipient_seen is 'To whom accounts have delivered mail, by month; for limits of new recipients.';
comment on column postern.recipient_seen.account is 'Account.';
comment on column postern.recipient_seen.recipient is 'Hash of the address in lower case: XXH3, 64 bits.';
comment on column postern.recipient_seen.seen_on is 'First day of the month in which it was seen.';

create table postern.history_gap (
    gateway text not null,
    from_at timestamptz not null,
    to_at timestamptz not null,
    lost bigint
);
create index history_gap_time on postern.history_gap (to_at);
comment on table postern.history_gap is 'Times of which history is missing something.';
comment on column postern.history_gap.gateway is 'Machine and spool of the gateway.';
comment on column postern.history_gap.from_at is 'Since when.';
comment on column postern.history_gap.to_at is 'Until when.';
comment on column postern.history_gap.lost is 'How many records; null: unknown, the process died.';

create table postern.history_writer (
    gateway text not null,
    run bigint not null,
    batch bigint not null,
    written_until timestamptz not null,
    primary key (gateway, run)
);
comment on table postern.history_writer is 'Runs of relay that have not ended yet, and the last batch of each: none is written twice, and one that ended without a word leaves a gap.';
comment on column postern.history_writer.gateway is 'Machine and spool of the gateway.';
comment on column postern.history_writer.run is 'A random number of the process.';
comment on column postern.history_writer.batch is 'Number of the last batch.';
comment on column postern.history_writer.written_until is 'What happened before that is written.';

create table postern.history_kept (
    from_month date not null,
    to_month date not null,
    checked_at timestamptz not null
);
comment on table postern.history_kept is 'One row: the months that have partitions, by UTC.';
comment on column postern.history_kept.from_month is 'The first one; what is older is not kept.';
comment on column postern.history_kept.to_month is 'The one behind the last.';
comment on column postern.history_kept.checked_at is 'When that was last compared with history_months.';
insert into postern.history_kept values ('2000-01-01', '2000-01-01', '-infinity');

-- ---- months come and go ----

create function postern.history_month_of(at timestamptz) returns date
language sql immutable as $$ select date_trunc('month', at at time zone 'UTC')::date $$;
comment on function postern.history_month_of is 'First day of the month of a time, by UTC.';

create function postern.history_make_month(p_month date) returns void
language plpgsql security definer set search_path = postern, pg_temp as $$
declare
    parent text;
    part text;
    midnight text;
begin
    foreach parent in array array['message', 'delivery', 'recipient_seen'] loop
        part := parent || to_char(p_month, '_YYYY_MM');
        midnight := case parent when 'recipient_seen' then '' else ' 00:00+00' end;
        continue when to_regclass('postern.' || part) is not null;
        -- Attached, not made as a partition: that waits for no reader, and makes none wait.
        execute format('create table postern.%I (like postern.%I including all)', part, parent);
        execute format('comment on table postern.%I is %L', part, format('%s of %s.', parent, to_char(p_month, 'YYYY-MM')));
        execute format('alter table postern.%I attach partition postern.%I for values from (%L) to (%L)', parent, part,
            p_month || midnight, (p_month + interval '1 month')::date || midnight);
    end loop;
end
$$;
comment on function postern.history_make_month is 'Makes the partitions of a month, as far as they are missing.';

create function postern.history_drop_before(p_month date) returns void
language plpgsql security definer set search_path = postern, pg_temp as $$
declare
    old text;
    lock_timeout text := current_setting('lock_timeout');
begin
    -- Not waited for: whoever reads all of history, while everybody else would wait behind us.
    perform set_config('lock_timeout', '200', true);
    for old in select c.relname from pg_catalog.pg_inherits i join pg_catalog.pg_class c on c.oid = i.inhrelid
            where i.inhparent = any(array['postern.message', 'postern.delivery', 'postern.recipient_seen']::regclass[])
                and right(c.relname, 7) < to_char(p_month, 'YYYY_MM')
            -- In the order in which history_write() takes them.
            order by array_position(array['message', 'delivery', 'recipient_seen'], left(c.relname, -8)), c.relname loop
        begin
            execute format('drop table postern.%I', old);
        exception when lock_not_available then
            exit;
        end;
    end loop;
    perform set_config('lock_timeout', lock_timeout, true);
    delete from postern.history_gap where to_at < p_month;
end
$$;
comment on function postern.history_drop_before is 'Drops what is older than that month; a part that somebody reads just now stays until the next time.';

create function postern.history_keep(p_month date) returns postern.history_kept
language plpgsql security definer set search_path = postern, pg_temp as $$
declare
    kept postern.history_kept;
    this_month date := postern.history_month_of(now());
    m date;
begin
    -- Two gateways need a new month in the same moment.
    perform pg_advisory_xact_lock(5773620);
    select * into kept from postern.history_kept;
    kept.from_month := this_month - make_interval(months => (select value::integer from postern.setting where name = 'history_months'));
    if kept.checked_at < now() - interval '1 hour' then
        perform postern.history_drop_before(kept.from_month);
        kept.checked_at := now();
    end if;
    m := kept.from_month;
    while m <= greatest(p_month, this_month + interval '1 month') loop
        perform postern.history_make_month(m);
        m := m + interval '1 month';
    end loop;
    kept.to_month := m;
    update postern.history_kept set from_month = kept.from_month, to_month = kept.to_month, checked_at = kept.checked_at;
    return kept;
end
$$;
comment on function postern.history_keep is 'Makes the months from the first that is kept to the next one, and to the one that is given; once an hour drops older ones.';

-- ---- what relay calls ----

create type postern.history_message as (account bigint, size bigint, recipients integer, accepted_us bigint, id text, login text,
    session text, sender text, from_domain text, message_id text);
comment on type postern.history_message is 'A message as relay tells it; times are microseconds since 1970.';
create type postern.history_delivery as (number integer, attempt integer, at_us bigint, seen_by bigint, recipient_hash bigint, message text,
    outcome text, recipient text, upstream text, host text, signed text, notice text, reply text);
comment on type postern.history_delivery is 'An outcome as relay tells it. number: -1 for all that were left; seen_by: account that knows the recipient from now on, or 0.';

create function postern.history_write(p_gateway text, p_run bigint, p_batch bigint, p_until_us bigint, p_ends boolean,
    p_messages postern.history_message[], p_deliveries postern.history_delivery[], p_gap bigint[]) returns void
language plpgsql security definer set search_path = postern, pg_temp as $$
declare
    until timestamptz := to_timestamp(p_until_us / 1000000.0::float8);
    -- The clock of a gateway may be wrong, but not make months without end.
    most_us bigint := (extract(epoch from now() + interval '1 year') * 1000000)::bigint;
    last_month date;
    kept postern.history_kept;
begin
    -- A database crash may forget the last second's history.
    perform set_config('synchronous_commit', 'off', true);
    insert into postern.history_writer as w values (p_gateway, p_run, p_batch, until)
        on conflict (gateway, run) do update set batch = excluded.batch, written_until = excluded.written_until
            where w.batch < excluded.batch;
    -- Written before its connection was lost.
    if not found then
        return;
    end if;
    if p_batch = 1 then
        with dead as (delete from postern.history_writer w where w.gateway = p_gateway and w.run <> p_run returning w.written_until)
            insert into postern.history_gap select p_gateway, dead.written_until, until, null from dead;
    end if;
    if p_gap is not null then
        insert into postern.history_gap values (p_gateway, to_timestamp(p_gap[1] / 1000000.0::float8), to_timestamp(p_gap[2] / 1000000.0::float8), p_gap[3]);
    end if;
    if p_ends then
        delete from postern.history_writer w where w.gateway = p_gateway and w.run = p_run;
    end if;

    select postern.history_month_of(to_timestamp(least(most_us, max(t)) / 1000000.0::float8)) into last_month from (
        select max(m.accepted_us) as t from unnest(p_messages) m union all select max(d.at_us) from unnest(p_deliveries) d) x;
    select * into kept from postern.history_kept;
    if last_month >= kept.to_month or kept.checked_at < now() - interval '1 hour' then
        kept := postern.history_keep(coalesce(last_month, kept.from_month));
    end if;

    -- Again after a restart of relay: it is there, or it was lost.
    insert into postern.message
        select m.id, m.account, m.login, m.session, m.sender, m.from_domain, m.message_id, m.size, m.recipients,
            to_timestamp(least(most_us, m.accepted_us) / 1000000.0::float8)
        from unnest(p_messages) m where m.accepted_us >= extract(epoch from kept.from_month)::bigint * 1000000
        on conflict do nothing;
    insert into postern.delivery
        select d.message, to_timestamp(least(most_us, d.at_us) / 1000000.0::float8), nullif(d.number, -1), d.attempt, d.outcome, d.recipient,
            d.upstream, d.host, d.reply, d.signed, d.notice
        from unnest(p_deliveries) d where d.at_us >= extract(epoch from kept.from_month)::bigint * 1000000;
    -- In order, so that two gateways do not wait for each other.
    insert into postern.recipient_seen
        select distinct d.seen_by, d.recipient_hash, greatest(last_month, kept.from_month)
        from unnest(p_deliveries) d where d.seen_by > 0 order by 1, 2
        on conflict do nothing;
end
$$;
comment on function postern.history_write is 'For relay: writes a batch, once however often it is called. p_gap: from, to (microseconds) and number of what was lost.';

create function postern.recipients_new(p_account bigint, p_recipients bigint[]) returns integer
language sql stable security definer set search_path = postern, pg_temp as $$
    select count(distinct r)::integer from unnest(p_recipients) r
        where not exists (select from postern.recipient_seen s where s.account = p_account and s.recipient = r);
$$;
comment on function postern.recipients_new is 'For auth: how many of these recipients the account has delivered nothing to in the time that history is kept.';

-- ---- what admins read ----

-- What strangers said is quoted as in JSON, so that nothing in it looks like the next name=value.
create view postern.queue_history as
    select m.id, m.accepted_at as at, 'accepted' as event, null as recipient,
        concat_ws(' ', 'id=' || m.id, 'login=' || m.login, 'session=' || m.session, 'sender=' || to_json(coalesce(m.sender, '')),
            'from_domain=' || m.from_domain, 'message_id=' || to_json(m.message_id), 'size=' || m.size,
            'recipients=' || m.recipients) as detail
    from postern.message m
    union all
    select d.message, d.at, d.outcome, d.recipient,
        concat_ws(' ', 'attempt=' || d.attempt, 'upstream=' || d.upstream, 'host=' || d.host, 'signed=' || d.signed,
            'notice=' || d.notice, 'reply=' || to_json(d.reply))
    from postern.delivery d
    order by 1, 2;
comment on view postern.queue_history is 'All that happened to messages, in order: accepted, delivered, deferred, refused, expired, deleted, delayed (their sender was told).';
comment on column postern.queue_history.id is 'Id of the message.';
comment on column postern.queue_history.at is 'When.';
comment on column postern.queue_history.event is 'accepted, or the outcome of an attempt.';
comment on column postern.queue_history.recipient is 'Whom it is about; null: the message.';
comment on column postern.queue_history.detail is 'The rest, name=value. sender, message_id and reply are quoted as in JSON. notice: id of the bounce or notice that tells the sender.';

create function postern.trace(id_or_message_id text) returns table (at timestamptz, event text, recipient text, detail text)
language plpgsql stable security definer set search_path = postern, pg_temp as $$
declare
    named text := btrim(id_or_message_id);
    m record;
    settled bigint;
    settled_at timestamptz;
begin
    named := case when named ~ '^<.*>$' then substr(named, 2, length(named) - 2) else named end;
    for m in select found.id, min(found.seen_at) as since, max(found.recipients) as recipients from (
            select x.id, x.accepted_at as seen_at, x.recipients from postern.message x where x.id = lower(named)
            union all
            select x.id, x.accepted_at, x.recipients from postern.message x where x.message_id = left(named, 250)
            union all -- the message's own row may be lost
            select d.message, d.at, null from postern.delivery d where d.message = lower(named)
        ) found group by found.id order by 2, 1 loop
        select case when bool_or(d.number is null) then m.recipients else count(distinct d.number) end, max(d.at)
            into settled, settled_at from postern.delivery d
            where d.message = m.id and d.outcome in ('delivered', 'refused', 'expired', 'deleted');
        if settled < m.recipients then
            settled_at := null;
        end if;
        return query
            select q.at, q.event, q.recipient, q.detail from postern.queue_history q where q.id = m.id
            union all
            select g.from_at, 'lost', null, concat_ws(' ', 'history of this time is missing: gateway=' || g.gateway, 'records=' || g.lost,
                    'until=' || to_char(g.to_at at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS"Z"'))
                from postern.history_gap g where g.to_at >= m.since and g.from_at <= coalesce(settled_at, now())
            union all
            select now(), 'waiting', null, format('%s of %s recipients have no outcome yet; see postern queue show %s',
                    m.recipients - settled, m.recipients, m.id)
                where settled < m.recipients
            order by 1;
    end loop;
end
$$;
comment on function postern.trace is 'The story of a message by its id, or of all with that Message-ID, also: lost (history is missing something), waiting (a recipient has no outcome).';

grant select on postern.message, postern.delivery, postern.history_gap, postern.recipient_seen, postern.queue_history to postern_admin;
grant execute on function postern.trace, postern.setting_set to postern_admin;
grant execute on function postern.recipients_new to postern_auth;
grant execute on function postern.history_write to postern_relay;
reset role;
