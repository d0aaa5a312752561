-- SPDX-License-Identifier: ISC
-- Limits: recipients an account has not sent to before, a warning at 80 %, and for admins the
-- figures that refusals name.

set role postern_owner;

-- ---- new recipients ----

alter table postern.rate_limit drop constraint rate_limit_measure_check, add constraint rate_limit_measure_check
    check (measure in ('messages', 'recipients', 'bytes', 'new_recipients'));
comment on column postern.rate_limit.measure is 'messages, recipients, bytes, or new_recipients: those the account has not sent to in the kept history.';

-- A session counts its recipients for such a limit only when it knows of it.
create function postern.tell_limit() returns trigger
language plpgsql security definer set search_path = postern, pg_temp as $$
begin
    if coalesce(new.measure, old.measure) = 'new_recipients' then
        perform pg_notify('postern', coalesce('plan ' || coalesce(new.plan, old.plan), 'account ' || coalesce(new.account, old.account)));
    end if;
    return null;
end
$$;
comment on function postern.tell_limit is 'Trigger: there is a limit of new recipients, or none any more.';
create trigger tell after insert or delete on postern.rate_limit
    for each row execute function postern.tell_limit();
comment on trigger tell on postern.rate_limit is 'Tells the processes of limits of new recipients.';

-- ---- charging ----

create or replace function postern.now_us() returns bigint
language sql volatile as $$ select (date_part('epoch', clock_timestamp()) * 1000000)::bigint $$;

create function postern.window_fits_at(counts bigint[], newest bigint, per_us bigint, charge bigint, amount bigint) returns timestamptz
language plpgsql immutable set search_path = postern, pg_temp as $$
declare
    remaining bigint := (select sum(c) from unnest(counts) c);
begin
    -- The oldest counters leave first; a counter of slot q leaves when slot q + 13 begins.
    for q in newest - 12 .. newest loop
        exit when charge > amount;
        remaining := remaining - counts[((q % 13 + 13) % 13)::integer + 1];
        if remaining + charge <= amount then
            return to_timestamp(ceil((q + 13) * per_us / 12.0 / 1000000));
        end if;
    end loop;
    return null;
end
$$;
comment on function postern.window_fits_at is 'When a full window will have room for a charge; null: never. Its 13 counters stand as in rate_state.';

alter table postern.rate_state
    add column sums bigint[] not null default '{}',
    add column until_us bigint not null default 0;
comment on column postern.rate_state.sums is 'Sum of each window''s counters.';
comment on column postern.rate_state.until_us is 'When the first of the slots ends; before it a charge only adds. 0: the sums are to be made anew.';

create or replace function postern.rate_state_at(s postern.rate_state, t bigint, measures text[], pers bigint[]) returns postern.rate_state
language plpgsql immutable set search_path = postern, pg_temp as $$
declare
    r postern.rate_state;
    old integer;
    slot bigint;
    shift bigint;
    empty constant bigint[] := array[0,0,0,0,0,0,0,0,0,0,0,0,0]::bigint[];
    window_counts bigint[];
begin
    r.account := s.account;
    r.last_us := t;
    r.measures := measures;
    r.pers_us := pers;
    r.slots := '{}';
    r.counts := '{}';
    r.sums := '{}';
    for i in 1 .. coalesce(array_length(measures, 1), 0) loop
        slot := 12 * t / pers[i];
        window_counts := empty;
        old := null;
        for k in 1 .. coalesce(array_length(s.measures, 1), 0) loop
            if s.measures[k] = measures[i] and s.pers_us[k] = pers[i] then
                old := k;
            end if;
        end loop;
        if old is not null then
            -- More than a slot ahead: the clock was set back. The counters keep their ages.
            shift := case when s.slots[old] > slot + 1 then slot - s.slots[old] else 0 end;
            for q in greatest(s.slots[old] - 12, 0) .. s.slots[old] loop
                if q + shift > slot - 13 then
                    window_counts[(((q + shift) % 13 + 13) % 13)::integer + 1] := s.counts[(old - 1) * 13 + (q % 13)::integer + 1];
                end if;
            end loop;
            slot := greatest(slot, s.slots[old] + shift);
        end if;
        r.slots := r.slots || slot;
        r.counts := r.counts || window_counts;
        r.sums := r.sums || (select sum(c)::bigint from unnest(window_counts) c);
        -- The slot of t, not a later one where time stood still.
        r.until_us := least(r.until_us, (12 * t / pers[i] + 1) * pers[i] / 12);
    end loop;
    return r;
end
$$;

drop function postern.admit(bigint[], integer[], integer[], bigint[]);
create type postern.admission as (ord integer, verdict text, charged_at bigint, new_recipients integer, bytes_counted boolean,
    state_reason text, measure text, per_text text, used bigint, amount bigint, next_at timestamptz, login text);
comment on type postern.admission is 'What admit() says.';

create function postern.admit(p_accounts bigint[], p_messages integer[], p_recipients integer[], p_bytes bigint[],
    p_hashes text[] default null)
returns setof postern.admission
language plpgsql security definer set search_path = postern, pg_temp
    -- Planned once, and by the indexes: batches are small, the tables are not.
    set plan_cache_mode = force_generic_plan set enable_hashjoin = off set enable_mergejoin = off as $$
declare
    p_new integer[] := p_recipients;
    e record;
    r postern.admission;
    warning postern.admission;
    s postern.rate_state;
    charges bigint[];
    ends timestamptz;
    place integer;
    t bigint;
    set_back boolean := false; -- for the rest of the batch: it only lets write more
    unused text;
begin
    -- As an assignment: PERFORM would start a statement, and most of what one costs is its start.
    -- A database crash may forget the last second's charges; ALTER FUNCTION ... SET has no effect at commit.
    -- A row that somebody holds must not take the others of the batch along to their deadline.
    unused := set_config('synchronous_commit', 'off', true) || set_config('lock_timeout', '500', true);
    -- A recipient whose hash did not come counts as new. Two messages to the same new one count twice
    -- when the second comes before the history has seen the first.
    if p_hashes is not null then
        p_new := array(select x.recipients - case when postern.counts_new_recipients(a.id, a.plan)
                then coalesce(cardinality(h) - postern.recipients_new(a.id, h), 0) else 0 end
            from unnest(p_accounts, p_recipients, p_hashes) with ordinality as x(account, recipients, hashes, n)
                left join postern.account a on a.id = x.account
                cross join cast(x.hashes as bigint[]) h
            order by x.n);
    end if;
    for e in
        select x.account, x.messages, x.recipients, x.bytes, l.measures, l.pers_us, l.amounts, h.rs as state_before,
            row(x.n, case when l.state = 'active' then 'ok' else coalesce(l.state, 'gone') end, 0, x.new,
                coalesce('bytes' = any(l.measures), false), l.state_reason, null, null, null, null, null, null)::postern.admission as answer
        -- In order of account: the entries of one follow each other, and parallel batches never wait in a circle.
        from (select * from unnest(p_accounts, p_messages, p_recipients, p_bytes, p_new) with ordinality
                as u(account, messages, recipients, bytes, new, n) order by u.account, u.n) x
            left join postern.limits_in_force l on l.account = x.account
            left join lateral (select rs from postern.rate_state rs where rs.account = x.account for update) h on true
            order by x.account, x.n loop
        r := e.answer;
        if r.verdict <> 'ok' or e.measures is null then
            return next r;
            continue;
        end if;
        -- The entries of an account follow each other: the next goes on from what the last one left.
        if s.account is distinct from e.account then
            s := e.state_before;
            -- The first charge of all. Out of the order; should that make a circle, lock_timeout ends it.
            if s.account is null then
                insert into postern.rate_state (account, last_us) values (e.account, 0) on conflict do nothing;
                select * into s from postern.rate_state rs where rs.account = e.account for update;
            end if;
        end if;
        t := postern.now_us();
        -- Most often nothing has changed since the last charge but the time within a slot.
        if t between s.last_us and s.until_us - 1 and s.measures = e.measures and s.pers_us = e.pers_us then
            s.last_us := t;
        else
            -- Up to a slot of the shortest window ahead: time stands still. More: the clock was set back.
            if s.last_us > t and s.last_us <= t + (select min(p) from unnest(e.pers_us) p) / 12 then
                t := s.last_us;
            end if;
            set_back := s.last_us > t;
            s := postern.rate_state_at(s, t, e.measures, e.pers_us);
        end if;

        -- All windows are tested, then all are written.
        for i in 1 .. array_length(e.measures, 1) loop
            charges[i] := case e.measures[i] when 'messages' then e.messages when 'recipients' then e.recipients
                when 'bytes' then e.bytes else r.new_recipients end;
            continue when charges[i] = 0 or s.sums[i] + charges[i] <= e.amounts[i];
            ends := postern.window_fits_at(s.counts[(i - 1) * 13 + 1 : i * 13], s.slots[i], e.pers_us[i], charges[i], e.amounts[i]);
            -- The answer names the limit that ends last; one that never ends is the last.
            continue when r.verdict = 'never' or ends <= r.next_at;
            r.verdict := case when ends is null then 'never' else 'limit' end;
            r.measure := e.measures[i];
            r.per_text := postern.per_text(e.pers_us[i]);
            r.used := s.sums[i];
            r.amount := e.amounts[i];
            r.next_at := ends;
        end loop;
        if r.verdict = 'ok' then
            for i in 1 .. array_length(e.measures, 1) loop
                place := (i - 1) * 13 + (s.slots[i] % 13)::integer + 1;
                s.counts[place] := s.counts[place] + charges[i];
                s.sums[i] := s.sums[i] + charges[i];
                -- At 80 %, once a crossing: a notice's commit takes a lock of the whole database.
                if s.sums[i] >= e.amounts[i] - e.amounts[i] / 5 and s.sums[i] - charges[i] < e.amounts[i] - e.amounts[i] / 5 then
                    warning := r;
                    warning.verdict := 'warning';
                    warning.measure := e.measures[i];
                    warning.per_text := postern.per_text(e.pers_us[i]);
                    warning.used := s.sums[i];
                    warning.amount := e.amounts[i];
                    warning.login := (select acc.login from postern.account acc where acc.id = e.account);
                    perform pg_notify('postern_usage', json_build_object('account', e.account, 'login', warning.login,
                        'measure', warning.measure, 'per', warning.per_text, 'used', warning.used, 'amount', warning.amount)::text);
                    return next warning;
                end if;
            end loop;
            r.charged_at := t;
        end if;
        -- New dates are kept whatever the verdict, or the counters would never grow older. One update costs less
        -- than what gathers many for the end: each expression costs its start once a call.
        if r.verdict = 'ok' or set_back then
            update postern.rate_state rs set last_us = s.last_us, measures = s.measures, pers_us = s.pers_us, slots = s.slots,
                counts = s.counts, sums = s.sums, until_us = s.until_us
                where rs.account = e.account;
        end if;
        return next r;
    end loop;
end
$$;
comment on function postern.admit is 'For auth: charges messages to accounts, each entry whole or not at all. never: more than can ever pass; limit: not before next_at; warning, before the ok: a limit has come to 80 %.';

drop function postern.settle(bigint[], bigint[], integer[], integer[], bigint[]);
create function postern.settle(p_accounts bigint[], p_charged_at bigint[], p_messages integer[], p_recipients integer[], p_bytes bigint[],
    p_new_recipients integer[] default null) returns void
language plpgsql security definer set search_path = postern, pg_temp as $$
declare
    e record;
    s postern.rate_state;
    refund bigint;
    slot bigint;
    place integer;
begin
    perform set_config('synchronous_commit', 'off', true);
    perform set_config('lock_timeout', '500', true);
    for e in select x.account, x.charged, x.messages, x.recipients, x.bytes, x.new
            from unnest(p_accounts, p_charged_at, p_messages, p_recipients, p_bytes, p_new_recipients) with ordinality
                as x(account, charged, messages, recipients, bytes, new, n)
            order by x.account, x.n loop
        select * into s from postern.rate_state rs where rs.account = e.account for update;
        continue when not found;
        for i in 1 .. coalesce(array_length(s.measures, 1), 0) loop
            refund := case s.measures[i] when 'messages' then e.messages when 'recipients' then e.recipients
                when 'bytes' then e.bytes else coalesce(e.new, 0) end;
            slot := 12 * e.charged / s.pers_us[i];
            -- Only into the slot of its charge, while that is in the window, never below 0.
            if slot between s.slots[i] - 12 and s.slots[i] then
                place := (i - 1) * 13 + (slot % 13)::integer + 1;
                s.counts[place] := greatest(s.counts[place] - refund, 0);
            end if;
        end loop;
        update postern.rate_state rs set counts = s.counts, until_us = 0 where rs.account = e.account;
    end loop;
end
$$;
comment on function postern.settle is 'For auth: gives back what admit() charged at that time.';

-- ---- what admins call ----

drop function postern.limit_put(text, bigint, text, interval, bigint);
create function postern.limit_put(p_plan text, p_account bigint, p_measure text, p_per interval, p_amount bigint) returns text
language plpgsql security definer set search_path = postern, pg_temp as $$
declare
    name text := p_measure || '/' || postern.per_text((extract(epoch from p_per) * 1000000)::bigint);
    old bigint := (select l.amount from postern.rate_limit l where l.plan is not distinct from p_plan
        and l.account is not distinct from p_account and l.measure = p_measure and l.per = p_per);
begin
    if p_amount is null then
        delete from postern.rate_limit l where l.plan is not distinct from p_plan and l.account is not distinct from p_account
            and l.measure = p_measure and l.per = p_per;
        if not found then
            raise exception 'there is no limit % to remove', name
                using hint = 'A plan''s limit is its plan''s to remove: select * from postern.rate_limit;';
        end if;
    else
        insert into postern.rate_limit as l (plan, account, measure, per, amount) values (p_plan, p_account, p_measure, p_per, p_amount)
            on conflict (plan, account, measure, per) do update set amount = excluded.amount;
    end if;
    return coalesce(postern.changed(name, old::text, p_amount::text), name || ': ' || coalesce(p_amount::text, 'none'));
exception when check_violation or not_null_violation then
    raise exception 'this is no limit: % % per %', p_amount, p_measure, p_per
        using hint = 'messages, recipients, bytes or new_recipients; 12 seconds to 366 days, without months; amount 0 or more, null to remove.';
end
$$;
comment on function postern.limit_put is 'Sets or removes one limit; says what has changed.';

create or replace function postern.limit_set(login text, measure text, per interval, amount bigint) returns void
language plpgsql security definer set search_path = postern, pg_temp as $$
begin
    perform postern.note('limit_set', login, postern.limit_put(null, postern.account_id(login), measure, per, amount));
end
$$;

create or replace function postern.plan_limit_set(plan text, measure text, per interval, amount bigint) returns void
language plpgsql security definer set search_path = postern, pg_temp as $$
begin
    perform postern.plan_check(plan);
    perform postern.note('plan_limit_set', plan, postern.limit_put(plan, null, measure, per, amount));
end
$$;

drop view postern.usage_overview;
drop function postern.usage(text);

-- From the counters as they stand: one query for any number of accounts.
create function postern.usage_of(p_accounts bigint[])
returns table (account bigint, measure text, per text, used bigint, amount bigint, next_at timestamptz)
language sql volatile security definer set search_path = postern, pg_temp as $$
    select l.account, i.measure, postern.per_text(i.per_us), coalesce(c.used, 0), i.amount,
        -- A counter of slot q leaves when slot q + 13 begins.
        case when coalesce(c.used, 0) >= i.amount then to_timestamp(ceil((c.last_slot + 13) * i.per_us / 12.0 / 1000000)) end
    from postern.limits_in_force l
    cross join lateral unnest(l.measures, l.pers_us, l.amounts) as i(measure, per_us, amount)
    left join postern.rate_state s on s.account = l.account
    left join lateral (
        select sum(y.count)::bigint as used, min(y.slot) filter (where coalesce(y.younger, 0) < i.amount) as last_slot
        from (
            select x.slot, x.count, sum(x.count) over (order by x.slot rows between 1 following and unbounded following) as younger
            from (
                select q as slot, s.counts[(w.k - 1) * 13 + q % 13 + 1] as count
                from unnest(s.measures, s.pers_us, s.slots) with ordinality as w(measure, per_us, slot, k),
                    generate_series(greatest(w.slot - 12, 0), w.slot) q
                where w.measure = i.measure and w.per_us = i.per_us
                    and q > 12 * greatest(postern.now_us(), s.last_us) / w.per_us - 13
            ) x
        ) y
    ) c on true
    where l.account = any(p_accounts);
$$;
comment on function postern.usage_of is 'What these accounts have used of their limits, now. next_at, of a full one: when it has room for one more; null: never.';

create function postern.usage(login text)
returns table (measure text, per text, used bigint, amount bigint, next_at timestamptz)
language sql volatile security definer set search_path = postern, pg_temp as $$
    select u.measure, u.per, u.used, u.amount, u.next_at from postern.usage_of(array[postern.account_id(login)]) u;
$$;
comment on function postern.usage is 'What an account has used of its limits, now. next_at, of a full one: when it has room for one more; null: never.';

create view postern.usage_overview as
    select a.login, u.measure, u.per, u.used, u.amount, u.next_at
    from postern.usage_of(array(select s.account from postern.rate_state s)) u
    join postern.account a on a.id = u.account
    where u.used > 0;
comment on view postern.usage_overview is 'What accounts have used of their limits, now; those that have used nothing are left out.';
comment on column postern.usage_overview.login is 'Whose use it is.';
comment on column postern.usage_overview.measure is 'messages, recipients, bytes or new_recipients.';
comment on column postern.usage_overview.per is 'The interval.';
comment on column postern.usage_overview.used is 'How much counts now.';
comment on column postern.usage_overview.amount is 'How much may pass.';
comment on column postern.usage_overview.next_at is 'Of a full one: when it has room for one more; null: never.';

-- ---- DKIM keys ----

-- Compared in the collation of the column, or its index is of no use.
create or replace function postern.dkim_keys(p_domain text)
returns table (selector text, algorithm text, private_key text)
language sql stable security definer set search_path = postern, pg_temp as $$
    select k.selector, k.algorithm, k.private_key from postern.dkim_key k
        where k.domain = lower(p_domain collate "C") collate "default" and k.state = 'active' order by k.algorithm desc;
$$;

grant select on postern.usage_overview to postern_admin;
grant execute on function postern.usage, postern.usage_of to postern_admin;
grant execute on function postern.admit, postern.settle to postern_auth;
reset role;
