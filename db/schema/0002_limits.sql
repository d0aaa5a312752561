-- SPDX-License-Identifier: ISC
-- Rate limits: a sliding window in 12 slots, so that never more than the amount passes in any
-- stretch of the interval, and what was used comes back after at most 13/12 of it.

set role postern_owner;

create table postern.rate_limit (
    id bigint generated always as identity primary key,
    plan text references postern.plan on delete cascade on update cascade,
    account bigint references postern.account on delete cascade,
    measure text not null check (measure in ('messages', 'recipients', 'bytes')),
    per interval not null check (per >= interval '12 seconds' and per <= interval '366 days'
        and extract(month from per) = 0 and extract(year from per) = 0),
    amount bigint not null check (amount >= 0),
    check ((plan is null) <> (account is null)),
    unique nulls not distinct (plan, account, measure, per)
);
comment on table postern.rate_limit is 'How much of a measure may pass in any stretch of an interval.';
comment on column postern.rate_limit.id is 'Number of the limit.';
comment on column postern.rate_limit.plan is 'Plan that it is for, or';
comment on column postern.rate_limit.account is 'account that it is for; it replaces the plan''s limit of the same measure and interval.';
comment on column postern.rate_limit.measure is 'messages, recipients or bytes.';
comment on column postern.rate_limit.per is 'The interval, without months.';
comment on column postern.rate_limit.amount is 'How much may pass.';

-- One row an account. The arrays run side by side, one element a window; `counts` has 13
-- counters for each: the one of slot s stands at place s mod 13.
create table postern.rate_state (
    account bigint primary key references postern.account on delete cascade,
    last_us bigint not null,
    measures text[] not null default '{}',
    pers_us bigint[] not null default '{}',
    slots bigint[] not null default '{}',
    counts bigint[] not null default '{}'
) with (fillfactor = 50);
comment on table postern.rate_state is 'What accounts have used; kept by admit() and settle().';
comment on column postern.rate_state.account is 'Whose use it is.';
comment on column postern.rate_state.last_us is 'Time of the last charge, microseconds since 1970.';
comment on column postern.rate_state.measures is 'Measure of each window.';
comment on column postern.rate_state.pers_us is 'Interval of each window, microseconds.';
comment on column postern.rate_state.slots is 'Slot of each window in which the last charge fell.';
comment on column postern.rate_state.counts is '13 counters for each window.';

-- SQL without settings of its own: it becomes a part of the expression that calls it.
create function postern.now_us() returns bigint
language sql volatile as $$ select (extract(epoch from clock_timestamp()) * 1000000)::bigint $$;
comment on function postern.now_us is 'The clock of the windows, microseconds since 1970.';

create function postern.per_text(per_us bigint) returns text
language sql immutable set search_path = postern, pg_temp as $$
    select case per_us
        when 60000000 then 'minute' when 3600000000 then 'hour' when 86400000000 then 'day'
        when 604800000000 then 'week'
        else case
            when per_us % 86400000000 = 0 then per_us / 86400000000 || ' days'
            when per_us % 3600000000 = 0 then per_us / 3600000000 || ' hours'
            when per_us % 60000000 = 0 then per_us / 60000000 || ' minutes'
            else per_us / 1000000 || ' seconds'
        end
    end;
$$;
comment on function postern.per_text is 'An interval as refusals name it: hour, 15 minutes.';

-- A limit of the account takes the place of its plan's of the same measure and interval.
create view postern.limits_in_force as
    select acc.id as account, acc.state, acc.state_reason, x.measures, x.pers_us, x.amounts
    from postern.account acc, lateral (
        select array_agg(y.measure) as measures, array_agg(y.per_us) as pers_us, array_agg(y.amount) as amounts
        from (
            select l.measure, (extract(epoch from l.per) * 1000000)::bigint as per_us, l.amount
            from postern.rate_limit l
            where (l.plan is null and l.account = acc.id)
                or (l.plan = acc.plan and not exists (select from postern.rate_limit o
                    where o.plan is null and o.account = acc.id and o.measure = l.measure and o.per = l.per))
            order by 1, 2
        ) y
    ) x;
comment on view postern.limits_in_force is 'Accounts with their limits, side by side, in order of measure and interval; null: none.';

-- The state brought to time t for these limits: new windows empty, slots gone by cleared.
create function postern.rate_state_at(s postern.rate_state, t bigint, measures text[], pers bigint[]) returns postern.rate_state
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
    end loop;
    return r;
end
$$;
comment on function postern.rate_state_at is 'A rate state brought to a time.';

create function postern.admit(p_accounts bigint[], p_messages integer[], p_recipients integer[], p_bytes bigint[])
returns table (ord integer, verdict text, charged_at bigint, state_reason text, measure text, per_text text,
    used bigint, amount bigint, next_at timestamptz, bytes_counted boolean)
language plpgsql security definer set search_path = postern, pg_temp
    -- Planned once, and by the indexes: batches are small, the tables are not.
    set plan_cache_mode = force_generic_plan set enable_hashjoin = off set enable_mergejoin = off as $$
declare
    e record;
    held postern.rate_state[];
    s postern.rate_state;
    written postern.rate_state[];
    charge bigint;
    w bigint[];
    sum_now bigint;
    used_now bigint;
    ends timestamptz;
    q bigint;
    t bigint;
    set_back boolean;
    same boolean;
begin
    -- A database crash may forget the last second's charges; ALTER FUNCTION ... SET has no effect at commit.
    perform set_config('synchronous_commit', 'off', true);
    -- A row that somebody holds must not take the others of the batch along to their deadline.
    perform set_config('lock_timeout', '500', true);
    -- A few statements for the whole batch: most of what one costs is its start. In order of account: parallel
    -- batches never wait for each other in a circle.
    held := array(select rs from postern.rate_state rs where rs.account = any(p_accounts) order by rs.account for update);
    for e in select x.account, x.messages, x.recipients, x.bytes, x.n, l.state, l.state_reason, l.measures, l.pers_us, l.amounts, h as used_before
            from unnest(p_accounts, p_messages, p_recipients, p_bytes) with ordinality as x(account, messages, recipients, bytes, n)
            left join postern.limits_in_force l on l.account = x.account
            left join unnest(held) h on h.account = x.account
            order by x.account, x.n loop
        ord := e.n;
        verdict := 'ok'; charged_at := 0; state_reason := null; measure := null; per_text := null; used := null; amount := null; next_at := null;
        bytes_counted := false;
        if e.state is distinct from 'active' then
            verdict := coalesce(e.state, 'gone');
            state_reason := e.state_reason;
            return next;
            continue;
        end if;
        bytes_counted := coalesce('bytes' = any(e.measures), false);
        -- Nothing was counted, so there is nothing to give back: no slot is that of time 0.
        if e.measures is null then
            return next;
            continue;
        end if;
        -- The entries of an account follow each other: the next goes on from what the last one left.
        if s.account is distinct from e.account then
            s := e.used_before;
        end if;
        -- The first charge of all. Out of the order; should that make a circle, lock_timeout ends it.
        if s.account is null then
            insert into postern.rate_state (account, last_us) values (e.account, 0) on conflict do nothing;
            select * into s from postern.rate_state rs where rs.account = e.account for update;
        end if;
        t := postern.now_us();
        -- Up to a slot of the shortest window ahead: time stands still. More: the clock was set back.
        if s.last_us > t then
            if s.last_us <= t + (select min(p) from unnest(e.pers_us) p) / 12 then
                t := s.last_us;
            end if;
        end if;
        set_back := s.last_us > t;
        -- Most often nothing has changed since the last charge but the time within a slot.
        same := not set_back and s.measures = e.measures and s.pers_us = e.pers_us;
        for i in 1 .. array_length(e.pers_us, 1) loop
            same := same and s.slots[i] = 12 * t / e.pers_us[i];
        end loop;
        if same then
            s.last_us := t;
        else
            s := postern.rate_state_at(s, t, e.measures, e.pers_us);
        end if;

        -- All windows are tested, then all are written.
        for i in 1 .. array_length(e.measures, 1) loop
            charge := case e.measures[i] when 'messages' then e.messages when 'recipients' then e.recipients else e.bytes end;
            w := s.counts[(i - 1) * 13 + 1 : i * 13];
            sum_now := w[1] + w[2] + w[3] + w[4] + w[5] + w[6] + w[7] + w[8] + w[9] + w[10] + w[11] + w[12] + w[13];
            continue when charge = 0 or sum_now + charge <= e.amounts[i];
            ends := null;
            used_now := sum_now;
            -- The oldest counters leave first; a counter of slot q leaves when slot q + 13 begins.
            for k in 0 .. 12 loop
                exit when charge > e.amounts[i];
                q := s.slots[i] - 12 + k;
                sum_now := sum_now - w[((q % 13 + 13) % 13)::integer + 1];
                if sum_now + charge <= e.amounts[i] then
                    ends := to_timestamp(ceil((q + 13) * e.pers_us[i] / 12.0 / 1000000));
                    exit;
                end if;
            end loop;
            -- The answer names the limit that ends last; one that never ends is the last.
            continue when verdict = 'never' or ends <= next_at;
            verdict := case when ends is null then 'never' else 'limit' end;
            measure := e.measures[i];
            per_text := postern.per_text(e.pers_us[i]);
            used := used_now;
            amount := e.amounts[i];
            next_at := ends;
        end loop;
        if verdict = 'ok' then
            for i in 1 .. array_length(e.measures, 1) loop
                charge := case e.measures[i] when 'messages' then e.messages when 'recipients' then e.recipients else e.bytes end;
                s.counts[(i - 1) * 13 + (s.slots[i] % 13)::integer + 1] := s.counts[(i - 1) * 13 + (s.slots[i] % 13)::integer + 1] + charge;
            end loop;
            charged_at := t;
        end if;
        -- New dates are kept whatever the verdict, or the counters would never grow older.
        if verdict = 'ok' or set_back then
            if written[cardinality(written)].account = e.account then
                written[cardinality(written)] := s;
            else
                written := written || s;
            end if;
        end if;
        return next;
    end loop;
    update postern.rate_state rs set last_us = x.last_us, measures = x.measures, pers_us = x.pers_us, slots = x.slots, counts = x.counts
        from unnest(written) x where rs.account = x.account;
end
$$;
comment on function postern.admit is 'For auth: charges messages to accounts, each entry whole or not at all. never: more than can ever pass; limit: not before next_at.';

create function postern.settle(p_accounts bigint[], p_charged_at bigint[], p_messages integer[], p_recipients integer[], p_bytes bigint[])
returns void
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
    for e in select x.account, x.charged, x.messages, x.recipients, x.bytes
            from unnest(p_accounts, p_charged_at, p_messages, p_recipients, p_bytes) with ordinality
                as x(account, charged, messages, recipients, bytes, n)
            order by x.account, x.n loop
        select * into s from postern.rate_state rs where rs.account = e.account for update;
        continue when not found;
        for i in 1 .. coalesce(array_length(s.measures, 1), 0) loop
            refund := case s.measures[i] when 'messages' then e.messages when 'recipients' then e.recipients else e.bytes end;
            slot := 12 * e.charged / s.pers_us[i];
            -- Only into the slot of its charge, while that is in the window, never below 0.
            if slot between s.slots[i] - 12 and s.slots[i] then
                place := (i - 1) * 13 + (slot % 13)::integer + 1;
                s.counts[place] := greatest(s.counts[place] - refund, 0);
            end if;
        end loop;
        update postern.rate_state rs set counts = s.counts where rs.account = e.account;
    end loop;
end
$$;
comment on function postern.settle is 'For auth: gives back what admit() charged at that time.';

create function postern.limit_put(p_plan text, p_account bigint, p_measure text, p_per interval, p_amount bigint) returns void
language plpgsql security definer set search_path = postern, pg_temp as $$
begin
    delete from postern.rate_limit l where l.plan is not distinct from p_plan and l.account is not distinct from p_account
        and l.measure = p_measure and l.per = p_per;
    if p_amount is not null then
        insert into postern.rate_limit (plan, account, measure, per, amount) values (p_plan, p_account, p_measure, p_per, p_amount);
    end if;
exception when check_violation or not_null_violation then
    raise exception 'this is no limit: % % per %', p_amount, p_measure, p_per
        using hint = 'messages, recipients or bytes; 12 seconds to 366 days, without months; amount 0 or more, null to remove.';
end
$$;
comment on function postern.limit_put is 'Sets or removes one limit.';

create function postern.limit_set(login text, measure text, per interval, amount bigint) returns void
language plpgsql security definer set search_path = postern, pg_temp as $$
begin
    perform postern.limit_put(null, postern.account_id(login), measure, per, amount);
    perform postern.note('limit_set', login, format('%s %s per %s', amount, measure, per));
end
$$;
comment on function postern.limit_set is 'Sets a limit of one account, in place of its plan''s; null removes it.';

create function postern.plan_limit_set(plan text, measure text, per interval, amount bigint) returns void
language plpgsql security definer set search_path = postern, pg_temp as $$
begin
    if not exists (select from postern.plan p where p.name = plan_limit_set.plan) then
        raise exception 'there is no plan "%"', plan using hint = 'select postern.plan_set(' || quote_nullable(plan) || ');';
    end if;
    perform postern.limit_put(plan, null, measure, per, amount);
    perform postern.note('plan_limit_set', plan, format('%s %s per %s', amount, measure, per));
end
$$;
comment on function postern.plan_limit_set is 'Sets a limit of all accounts of a plan; null removes it.';

create function postern.usage(login text)
returns table (measure text, per text, used bigint, amount bigint)
language plpgsql stable security definer set search_path = postern, pg_temp as $$
declare
    a bigint := postern.account_id(login);
    s postern.rate_state;
    ms text[];
    ps bigint[];
    ams bigint[];
begin
    select l.measures, l.pers_us, l.amounts into ms, ps, ams from postern.limits_in_force l where l.account = a;
    select * into s from postern.rate_state rs where rs.account = a;
    s := postern.rate_state_at(s, greatest(postern.now_us(), 0), ms, ps);
    for i in 1 .. coalesce(array_length(ms, 1), 0) loop
        measure := ms[i];
        per := postern.per_text(ps[i]);
        used := (select sum(c) from unnest(s.counts[(i - 1) * 13 + 1 : i * 13]) c);
        amount := ams[i];
        return next;
    end loop;
end
$$;
comment on function postern.usage is 'What an account has used of its limits, now.';

create view postern.usage_overview as
    select a.login, u.measure, u.per, u.used, u.amount from postern.account a, lateral postern.usage(a.login) u;
comment on view postern.usage_overview is 'Use of all limits of all accounts, now.';

grant select on postern.usage_overview, postern.rate_limit to postern_admin;
grant execute on function postern.limit_set, postern.plan_limit_set, postern.usage to postern_admin;
grant execute on function postern.admit, postern.settle to postern_auth;
reset role;
