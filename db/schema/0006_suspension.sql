-- SPDX-License-Identifier: ISC
-- Sender rights, suspensions, and the accounts whose mail relay holds.

set role postern_owner;

-- ---- sender rights ----

-- ASCII case does not matter in a right, so it must not matter in taking one back.
create or replace function postern.sender_grant(login text, pattern text) returns void
language plpgsql security definer set search_path = postern, pg_temp as $$
declare
    -- One at a time for an account, or two admins at once would pass the limits below.
    a bigint := (postern.account_locked(login)).id;
    wanted text := lower(pattern collate "C");
    wrong text := case
        when pattern is null or pattern = '' then 'it is empty'
        when octet_length(pattern) > 320 then 'it is longer than 320 octets'
        when pattern ~ '[[:cntrl:][:space:]]' then 'it has a blank or a control character'
        when pattern !~ '@' then 'it has no @'
        when pattern ~ '@.*@' then 'it has more than one @'
        when pattern ~ '@.*\*' then 'a domain has no *; @.domain means all subdomains'
        when pattern ~ '\*' and pattern !~ '^[^*]+\+\*@' then 'a * stands only behind a +, as the tag'
        when pattern ~ '@\.?$' then 'it has no domain'
        when pattern ~ '@.*(\.\.|\.$)' then 'its domain has a dot too many'
    end;
    held bigint;
    octets bigint;
    covered boolean;
begin
    if wrong is not null then
        raise exception '"%" is no sender pattern: %', left(pattern, 60), wrong
            using hint = 'user@domain, @domain, @.domain (subdomains) or user+*@domain (any tag)';
    end if;
    select count(*), sum(octet_length(s.pattern)), bool_or(lower(s.pattern collate "C") = wanted) into held, octets, covered
        from postern.sender s where s.account = a;
    if covered then
        return;
    end if;
    -- All of them travel to a session in one datagram.
    if held >= 500 or octets > 50000 then
        raise exception 'the account "%" has 500 sender rights, or 50000 octets of them, already', login
            using hint = 'Grant a whole domain: @domain, or @.domain for its subdomains.';
    end if;
    insert into postern.sender values (a, wanted);
    perform postern.note('sender_grant', login, postern.changed('sender', null, wanted));
end
$$;
comment on function postern.sender_grant is 'Lets an account send as an address or a domain. Its live sessions end with 421: the next login knows.';

create or replace function postern.sender_revoke(login text, pattern text) returns void
language plpgsql security definer set search_path = postern, pg_temp as $$
declare
    a bigint := postern.account_id(login);
begin
    delete from postern.sender s where s.account = a and lower(s.pattern collate "C") = lower(sender_revoke.pattern collate "C");
    if not found then
        raise exception 'the account "%" has no sender right "%"', login, pattern
            using hint = coalesce((select 'It has: ' || left(string_agg(s.pattern, ', ' order by s.pattern), 400)
                    from postern.sender s where s.account = a), 'It has none; its login needs none, if that is an address.');
    end if;
    perform postern.note('sender_revoke', login, postern.changed('sender', lower(pattern collate "C"), null));
end
$$;
comment on function postern.sender_revoke is 'Takes a sender right back. The live sessions of the account end with 421.';

-- ---- suspension ----

create or replace function postern.account_suspend(login text, reason text) returns void
language plpgsql security definer set search_path = postern, pg_temp as $$
declare
    a postern.account := postern.account_locked(login);
    wanted text := btrim(reason, E' \t\r\n');
begin
    if wanted is null or wanted = '' then
        raise exception 'a reason is needed to suspend "%"', login
            using hint = 'One line; the customer reads it when he logs in with the right password.';
    end if;
    if wanted ~ '[[:cntrl:]]' or octet_length(wanted) > 300 then
        raise exception 'this cannot be a reason: "%"', left(wanted, 60)
            using hint = 'One line of at most 300 octets without control characters.';
    end if;
    if a.state = 'closed' then
        raise exception 'the account "%" is closed', login
            using hint = 'Nobody can log in to it; what it sent is delivered, unless it was suspended when it was closed.';
    end if;
    update postern.account set state = 'suspended', state_reason = wanted where id = a.id;
    perform postern.note('account_suspend', login, concat_ws('; ', postern.changed('state', a.state, 'suspended'),
        postern.changed('reason', a.state_reason, wanted)));
end
$$;
comment on function postern.account_suspend is
    'Ends the live sessions of an account, refuses its logins with the reason, and holds its queued mail, until account_resume.';

create or replace function postern.account_resume(login text) returns void
language plpgsql security definer set search_path = postern, pg_temp as $$
declare
    a postern.account := postern.account_locked(login);
begin
    if a.state <> 'suspended' then
        raise exception 'the account "%" is not suspended, but %', login, a.state
            using hint = case a.state when 'closed' then 'A closed account stays closed.' else 'There is nothing to do.' end;
    end if;
    update postern.account set state = 'active', state_reason = null where id = a.id;
    perform postern.note('account_resume', login, concat_ws('; ', postern.changed('state', 'suspended', 'active'),
        postern.changed('reason', a.state_reason, null)));
end
$$;
comment on function postern.account_resume is 'Lets a suspended account go on; its held mail leaves at once.';
comment on column postern.account.state is 'active, suspended (no logins, its mail is held) or closed (no logins, its mail is delivered).';
comment on column postern.account.state_reason is
    'Why it is suspended. A closed account that still has one was suspended then, and its mail stays held.';

create index account_held on postern.account (id)
    where state = 'suspended' or (state = 'closed' and state_reason is not null);
comment on index postern.account_held is 'Accounts whose mail is held: few among many.';

create function postern.held_accounts() returns setof bigint
language sql stable security definer set search_path = postern, pg_temp as $$
    select a.id from postern.account a
        where a.state = 'suspended' or (a.state = 'closed' and a.state_reason is not null)
        order by a.id;
$$;
comment on function postern.held_accounts is 'For relay: the accounts whose mail waits.';

create function postern.held_among(p_accounts bigint[]) returns setof bigint
language sql stable security definer set search_path = postern, pg_temp as $$
    select a.id from postern.account a
        where a.id = any(p_accounts) and (a.state = 'suspended' or (a.state = 'closed' and a.state_reason is not null))
        order by a.id;
$$;
comment on function postern.held_among is 'For relay: which of these accounts are such whose mail waits.';
grant execute on function postern.held_accounts, postern.held_among to postern_relay;
reset role;
