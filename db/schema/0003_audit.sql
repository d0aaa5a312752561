-- SPDX-License-Identifier: ISC
-- The audit tells who, what, from and to; an account's plan and route have functions; the overview
-- answers for one of 200,000 accounts at once; every object has a comment.

set role postern_owner;

create function postern.changed(name text, old text, new text) returns text
language sql immutable set search_path = postern, pg_temp as $$
    select name || ': ' || coalesce(old, 'none') || ' -> ' || coalesce(new, 'none') where old is distinct from new;
$$;
comment on function postern.changed is 'For the audit: "name: old -> new", null when they are the same.';

-- ---- the audit ----

-- Two lines of one transaction keep their order.
alter table postern.audit alter column at set default clock_timestamp();
create index audit_object on postern.audit (object, at);
create index audit_at on postern.audit (at);
comment on table postern.audit is 'What admins did, from what to what.';
comment on column postern.audit.object is 'Login as the account is called, plan or domain.';
comment on column postern.audit.detail is 'What changed, "plan: default -> gold; route: none -> isp", or the arguments; never a secret.';

create or replace function postern.note(action text, object text, detail text default null) returns void
language sql security definer set search_path = postern, pg_temp as $$
    insert into postern.audit (action, object, detail) values (note.action,
        coalesce((select a.login from postern.account a where lower(a.login collate "C") = lower(note.object collate "C")
            and note.action !~ '^(plan|dkim|setting)_'), note.object), nullif(note.detail, ''));
$$;
comment on function postern.note is 'Writes a line of the audit; an account is named as it is called, in whatever case it was given.';

-- ---- accounts ----

create or replace function postern.account_id(p_login text) returns bigint
language plpgsql stable security definer set search_path = postern, pg_temp as $$
declare
    found_id bigint;
begin
    select id into found_id from postern.account where lower(login collate "C") = lower(p_login collate "C");
    if found_id is null then
        raise exception 'there is no account "%"', p_login
            using hint = format('Like it: select login from postern.account_overview where login ilike %L;',
                '%' || left(split_part(p_login, '@', 1), 40) || '%');
    end if;
    return found_id;
end
$$;

create function postern.account_locked(p_login text) returns postern.account
language sql volatile security definer set search_path = postern, pg_temp as $$
    select * from postern.account where id = postern.account_id(p_login) for no key update;
$$;
comment on function postern.account_locked is 'The account with that login, which nobody else changes until the end of the transaction: what it was is told to the audit.';

create function postern.plan_check(p_plan text) returns void
language plpgsql stable security definer set search_path = postern, pg_temp as $$
begin
    if not exists (select from postern.plan p where p.name = p_plan) then
        raise exception 'there is no plan "%"', p_plan
            using hint = format('select name from postern.plan; or make it: select postern.plan_set(%L);', coalesce(p_plan, 'name'));
    end if;
end
$$;
comment on function postern.plan_check is 'Refuses the name of a plan that does not exist.';

create or replace function postern.account_create(login text, password text default null, plan text default 'default') returns bigint
language plpgsql security definer set search_path = postern, pg_temp as $$
declare
    new_id bigint;
begin
    perform postern.plan_check(plan);
    insert into postern.account (login, plan) values (account_create.login, account_create.plan) returning id into new_id;
    if password is not null then
        insert into postern.credential (account, verifier) values (new_id, postern.verifier_of(password));
    end if;
    perform postern.note('account_create', login, concat_ws('; ', postern.changed('state', null, 'active'),
        postern.changed('plan', null, plan), postern.changed('password', null, case when password is not null then 'set' end)));
    return new_id;
exception
    when unique_violation then
        raise exception 'there is an account "%" already', login
            using hint = 'Case does not matter. Use postern.account_set_password to change its password; that of a closed account stays taken.';
    when check_violation or not_null_violation then
        raise exception '"%" cannot be a login', left(login, 60) using hint = '1 to 254 octets without blanks; usually an address.';
end
$$;

create or replace function postern.account_close(login text) returns void
language plpgsql security definer set search_path = postern, pg_temp as $$
declare
    a postern.account := postern.account_locked(login);
begin
    if a.state = 'closed' then
        raise exception 'the account "%" is closed already', a.login
            using hint = 'Nothing is to be done. Its login stays taken; a new account needs another one.';
    end if;
    -- The reason of a suspension stays: whose mail was held has it held.
    update postern.account set state = 'closed' where id = a.id;
    perform postern.note('account_close', a.login, postern.changed('state', a.state, 'closed'));
end
$$;

create function postern.account_set_plan(login text, plan text) returns void
language plpgsql security definer set search_path = postern, pg_temp as $$
declare
    a postern.account := postern.account_locked(login);
begin
    perform postern.plan_check(plan);
    update postern.account set plan = account_set_plan.plan where id = a.id;
    perform postern.note('account_set_plan', a.login, postern.changed('plan', a.plan, plan));
end
$$;
comment on function postern.account_set_plan is 'Gives an account another plan; its limits count from the next message on.';

create function postern.account_set_route(login text, route text) returns void
language plpgsql security definer set search_path = postern, pg_temp as $$
declare
    a postern.account := postern.account_locked(login);
begin
    update postern.account set route = account_set_route.route where id = a.id;
    perform postern.note('account_set_route', a.login, postern.changed('route', a.route, route));
exception when check_violation then
    raise exception '"%" cannot be a route', left(route, 60)
        using hint = 'The name of an upstream in postern.conf: a letter, then letters, digits, - and _ (at most 64); null: the default route.';
end
$$;
comment on function postern.account_set_route is 'Sends the mail of an account by another upstream of the configuration; null: the default route.';

-- Nobody waits for a list of 200,000 accounts, or for one of them: each column is an index scan an account.
create index credential_account on postern.credential (account);
create or replace view postern.account_overview as
    select a.login, a.state, a.state_reason, a.plan, a.route, a.created_at,
        (select count(*) from postern.credential c where c.account = a.id and c.revoked_at is null
            and (c.expires_at is null or c.expires_at > now())) as passwords,
        (select max(last_used_at) from postern.credential c where c.account = a.id) as last_login,
        (select array_agg(pattern order by pattern) from postern.sender s where s.account = a.id) as senders,
        a.id as account
    from postern.account a;
comment on view postern.account_overview is 'Accounts at a glance. One: where lower(login collate "C") = lower(''...'' collate "C"), by an index.';
comment on column postern.account_overview.login is 'Name at the login; ASCII case does not matter.';
comment on column postern.account_overview.state is 'active, suspended or closed.';
comment on column postern.account_overview.state_reason is 'Why it is suspended.';
comment on column postern.account_overview.plan is 'Its plan.';
comment on column postern.account_overview.route is 'Upstream of its mail; null: the default route.';
comment on column postern.account_overview.created_at is 'When it was made.';
comment on column postern.account_overview.passwords is 'Credentials it can log in with: neither revoked nor expired.';
comment on column postern.account_overview.last_login is 'Last login with any credential, those taken back too.';
comment on column postern.account_overview.senders is 'What it may send as, beside its login.';
comment on column postern.account_overview.account is 'Its number: account= in the list of the queue, number= of account.held in the log.';

-- ---- plans ----

alter table postern.plan add column add_sender boolean not null default false;
comment on column postern.plan.add_sender is 'Whether a Sender with the login is added where the header From is another address (else nothing is).';

drop function postern.plan_set(text, bigint, integer, integer, boolean);
create function postern.plan_set(name text, message_bytes bigint default null, recipients_per_message integer default null,
    connections integer default null, sign_required boolean default false, add_sender boolean default false) returns void
language plpgsql security definer set search_path = postern, pg_temp as $$
declare
    old postern.plan;
begin
    select * into old from postern.plan p where p.name = plan_set.name for update;
    insert into postern.plan as p (name, message_bytes, recipients_per_message, connections, sign_required, add_sender)
        values (plan_set.name, plan_set.message_bytes, plan_set.recipients_per_message, plan_set.connections,
            plan_set.sign_required, plan_set.add_sender)
        on conflict on constraint plan_pkey do update set message_bytes = excluded.message_bytes,
            recipients_per_message = excluded.recipients_per_message, connections = excluded.connections,
            sign_required = excluded.sign_required, add_sender = excluded.add_sender;
    perform postern.note('plan_set', name, concat_ws('; ', case when old.name is null then 'new' end,
        postern.changed('message_bytes', old.message_bytes::text, message_bytes::text),
        postern.changed('recipients_per_message', old.recipients_per_message::text, recipients_per_message::text),
        postern.changed('connections', old.connections::text, connections::text),
        postern.changed('sign_required', old.sign_required::text, sign_required::text),
        postern.changed('add_sender', old.add_sender::text, add_sender::text)));
exception when check_violation or not_null_violation then
    raise exception 'this is no plan: "%"', left(name, 60)
        using hint = 'A name of letters, digits and -_. (at most 64), limits above 0 or null, sign_required and add_sender true or false.';
end
$$;
comment on function postern.plan_set is 'Makes or changes a plan; what is not given is unlimited, or false.';

-- ---- DKIM keys ----

create or replace function postern.dkim_key_add(domain text, selector text, algorithm text, private_key text, public_record text) returns text
language plpgsql security definer set search_path = postern, pg_temp as $$
declare
    d text := lower(domain collate "C");
    first boolean := not exists (select from postern.dkim_key k where k.domain = d and k.algorithm = dkim_key_add.algorithm
        and k.state = 'active');
    state text := case when first then 'active' else 'pending' end;
    broken text;
begin
    insert into postern.dkim_key (domain, selector, algorithm, private_key, public_record, state)
        values (d, dkim_key_add.selector, dkim_key_add.algorithm, dkim_key_add.private_key, dkim_key_add.public_record, state);
    perform postern.note('dkim_key_add', d, concat_ws('; ', selector || ' ' || algorithm, postern.changed('state', null, state)));
    return state;
exception
    when unique_violation then
        get stacked diagnostics broken = constraint_name;
        if broken = 'dkim_key_active' then
            raise exception 'another key of "%" has become active at the same moment', d using hint = 'Add this one again; it will be pending.';
        end if;
        raise exception 'the domain "%" has a key with selector "%" already', d, selector using hint = 'Choose another selector.';
    when check_violation or not_null_violation then
        raise exception 'this is no DKIM key: "%" of "%"', left(selector, 63), left(domain, 60)
            using hint = 'Domain and selector of a-z, 0-9 and _.- (a name in another script: its xn-- form), algorithm rsa-sha256 or ed25519-sha256; "postern dkim create DOMAIN" makes one.';
end
$$;

-- ---- comments that were missing ----

comment on trigger tell on postern.account is 'Running processes forget what they know of the account.';
comment on trigger tell on postern.credential is 'Running processes forget what they know of its account.';
comment on trigger tell on postern.sender is 'Running processes forget what they know of its account.';
comment on trigger tell on postern.plan is 'Running processes forget what they know of its accounts.';
comment on trigger tell on postern.dkim_key is 'Running processes read the keys of the domain again.';
comment on column postern.limits_in_force.account is 'Number of the account.';
comment on column postern.limits_in_force.state is 'Its state.';
comment on column postern.limits_in_force.state_reason is 'Why it is suspended.';
comment on column postern.limits_in_force.measures is 'Measure of each limit.';
comment on column postern.limits_in_force.pers_us is 'Interval of each limit, microseconds.';
comment on column postern.limits_in_force.amounts is 'How much may pass of each.';

grant execute on function postern.account_id, postern.account_set_plan, postern.account_set_route, postern.plan_set to postern_admin;
reset role;
-- `postern database status` for admins.
grant select on postern.migration to postern_admin;
