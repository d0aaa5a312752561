-- SPDX-License-Identifier: ISC
-- The schema of Postern: accounts, what they may send as, how much, and DKIM keys.
-- Admins live here: names are stable, every object has a comment, errors say what to do.
-- Runs in one transaction, as a superuser (it makes roles and an extension).

-- Roles are cluster-wide; another database may have made them, even a moment ago.
do $$
declare
    r text;
begin
    foreach r in array array['postern_owner', 'postern_admin', 'postern_auth', 'postern_relay'] loop
        begin
            if not exists (select from pg_catalog.pg_roles where rolname = r) then
                execute format('create role %I %s', r,
                    case when r in ('postern_auth', 'postern_relay') then 'login' else 'nologin' end);
            end if;
        exception when duplicate_object or unique_violation then
            null;
        end;
    end loop;
end
$$;

create schema if not exists postern;
alter schema postern owner to postern_owner;
comment on schema postern is 'Postern, the mail submission gateway: accounts, rights, limits, DKIM keys.';
do $$
declare
    elsewhere text := (select n.nspname from pg_catalog.pg_extension e join pg_catalog.pg_namespace n on n.oid = e.extnamespace
        where e.extname = 'pgcrypto' and n.nspname <> 'postern');
begin
    if elsewhere is not null then
        raise exception 'the extension pgcrypto is in the schema "%"; Postern needs it in its own', elsewhere
            using hint = 'Give Postern a database of its own, or: alter extension pgcrypto set schema postern;';
    end if;
end
$$;
create extension if not exists pgcrypto with schema postern;

grant usage on schema postern to postern_admin, postern_auth, postern_relay;
-- Nothing is executable or readable unless it is granted below.
alter default privileges for role postern_owner revoke execute on functions from public;
set role postern_owner;

-- ---- settings ----

create table postern.setting (
    name text primary key,
    value text not null
);
comment on table postern.setting is 'Settings of the schema itself.';
comment on column postern.setting.name is 'scram_iterations: cost of new verifiers, 4096 to 65536. server_secret: hides which users exist.';
comment on column postern.setting.value is 'The value as text.';
insert into postern.setting values
    ('scram_iterations', '15000'),
    ('server_secret', encode(postern.gen_random_bytes(32), 'hex'));

-- ---- plans and accounts ----

create table postern.plan (
    name text primary key check (name ~ '^[A-Za-z0-9][-A-Za-z0-9_.]{0,63}$'),
    message_bytes bigint check (message_bytes > 0),
    recipients_per_message integer check (recipients_per_message > 0),
    connections integer check (connections > 0),
    sign_required boolean not null default false
);
comment on table postern.plan is 'What accounts of a kind may do; null means the limit of the configuration.';
comment on column postern.plan.name is 'Name of the plan.';
comment on column postern.plan.message_bytes is 'Largest message, octets.';
comment on column postern.plan.recipients_per_message is 'Recipients of one message.';
comment on column postern.plan.connections is 'Connections of one account at a time.';
comment on column postern.plan.sign_required is 'Whether mail waits when its domain has no DKIM key (else it leaves unsigned).';
insert into postern.plan (name) values ('default');

create table postern.account (
    id bigint generated always as identity primary key,
    login text not null check (login ~ '^[^[:cntrl:][:space:]]+$' and octet_length(login) <= 254),
    plan text not null default 'default' references postern.plan on update cascade,
    state text not null default 'active' check (state in ('active', 'suspended', 'closed')),
    state_reason text,
    route text check (route ~ '^[A-Za-z][-A-Za-z0-9_]{0,63}$'),
    created_at timestamptz not null default now()
);
create unique index account_login on postern.account (lower(login collate "C"));
comment on table postern.account is 'Who may log in. Change it by the functions account_*.';
comment on column postern.account.id is 'Number of the account.';
comment on column postern.account.login is 'Name at the login; ASCII case does not matter.';
comment on column postern.account.plan is 'Its plan.';
comment on column postern.account.state is 'active, suspended (may not log in for now) or closed.';
comment on column postern.account.state_reason is 'Why it is suspended; for the admin.';
comment on column postern.account.route is 'Upstream of its mail; null: the default route.';
comment on column postern.account.created_at is 'When it was made.';

create table postern.credential (
    id bigint generated always as identity primary key,
    account bigint not null references postern.account on delete cascade,
    kind text not null default 'scram-sha-256' check (kind in ('scram-sha-256', 'crypt', 'token', 'certificate')),
    label text not null default 'password',
    verifier text not null,
    expires_at timestamptz,
    last_used_at timestamptz,
    revoked_at timestamptz,
    created_at timestamptz not null default now()
);
create unique index credential_label on postern.credential (account, label) where revoked_at is null;
comment on table postern.credential is 'Passwords, as verifiers only.';
comment on column postern.credential.id is 'Number of the credential.';
comment on column postern.credential.account is 'Whose it is.';
comment on column postern.credential.kind is 'scram-sha-256; the others are for later use.';
comment on column postern.credential.label is 'Its name within the account: "password", or that of a device.';
comment on column postern.credential.verifier is 'SCRAM-SHA-256$iterations:salt$StoredKey:ServerKey, as PostgreSQL itself writes it.';
comment on column postern.credential.expires_at is 'Not valid from then on.';
comment on column postern.credential.last_used_at is 'Last login; a mail program that logs in again within ten minutes is not noted again.';
comment on column postern.credential.revoked_at is 'When it was taken back.';
comment on column postern.credential.created_at is 'When it was made.';

create table postern.sender (
    account bigint not null references postern.account on delete cascade,
    pattern text not null check (pattern ~ '^([^[:cntrl:][:space:]@*]*|[^[:cntrl:][:space:]@*]+\+\*)@\.?[^[:cntrl:][:space:]@*.][^[:cntrl:][:space:]@*]*$'
        and octet_length(pattern) <= 320),
    primary key (account, pattern)
);
comment on table postern.sender is 'Addresses an account may send as, beside its login.';
comment on column postern.sender.account is 'Whose right it is.';
comment on column postern.sender.pattern is 'user@domain, @domain, @.domain (subdomains) or user+*@domain.';

create table postern.dkim_key (
    domain text not null check (domain = lower(domain collate "C") and domain ~ '^[a-z0-9_.-]{1,253}$'),
    selector text not null check (selector ~ '^[a-z0-9_.-]{1,63}$'),
    algorithm text not null check (algorithm in ('rsa-sha256', 'ed25519-sha256')),
    private_key text not null,
    public_record text not null,
    state text not null default 'pending' check (state in ('pending', 'active', 'retiring', 'retired')),
    changed_at timestamptz not null default now(),
    primary key (domain, selector)
);
create unique index dkim_key_active on postern.dkim_key (domain, algorithm) where state = 'active';
comment on table postern.dkim_key is 'DKIM keys. The first of an algorithm for a domain is active at once.';
comment on column postern.dkim_key.domain is 'Domain of the header From that it signs for.';
comment on column postern.dkim_key.selector is 'Selector: the record stands at selector._domainkey.domain.';
comment on column postern.dkim_key.algorithm is 'rsa-sha256 or ed25519-sha256.';
comment on column postern.dkim_key.private_key is 'PEM; only postern_relay reads it.';
comment on column postern.dkim_key.public_record is 'Value of the DNS record.';
comment on column postern.dkim_key.state is 'pending, active (signs), retiring, retired.';
comment on column postern.dkim_key.changed_at is 'Last change of state.';

create table postern.audit (
    at timestamptz not null default now(),
    actor text not null default session_user,
    action text not null,
    object text not null,
    detail text
);
comment on table postern.audit is 'What admins did.';
comment on column postern.audit.at is 'When.';
comment on column postern.audit.actor is 'Database user.';
comment on column postern.audit.action is 'Function that was called.';
comment on column postern.audit.object is 'Login, plan or domain.';
comment on column postern.audit.detail is 'Its arguments, never a secret.';

create function postern.note(action text, object text, detail text default null) returns void
language sql security definer set search_path = postern, pg_temp as $$
    insert into postern.audit (action, object, detail) values (action, object, detail);
$$;
comment on function postern.note is 'Writes a line of the audit.';

-- ---- notices to the running processes ----

create function postern.tell_account() returns trigger
language plpgsql security definer set search_path = postern, pg_temp as $$
begin
    if tg_op <> 'INSERT' then
        perform pg_notify('postern', 'account ' || case tg_table_name when 'account' then (to_jsonb(old) ->> 'id') else (to_jsonb(old) ->> 'account') end);
    end if;
    if tg_op <> 'DELETE' then
        perform pg_notify('postern', 'account ' || case tg_table_name when 'account' then (to_jsonb(new) ->> 'id') else (to_jsonb(new) ->> 'account') end);
    end if;
    return null;
end
$$;
comment on function postern.tell_account is 'Trigger: an account, or something of it, has changed.';
create trigger tell after update or delete on postern.account
    for each row execute function postern.tell_account();
create trigger tell after insert or delete or update of account, verifier, expires_at, revoked_at on postern.credential
    for each row execute function postern.tell_account();
create trigger tell after insert or update or delete on postern.sender
    for each row execute function postern.tell_account();

create function postern.tell_plan() returns trigger
language plpgsql security definer set search_path = postern, pg_temp as $$
begin
    perform pg_notify('postern', 'plan ' || coalesce(new.name, old.name));
    return null;
end
$$;
comment on function postern.tell_plan is 'Trigger: a plan has changed.';
create trigger tell after update on postern.plan for each row execute function postern.tell_plan();

create function postern.tell_dkim() returns trigger
language plpgsql security definer set search_path = postern, pg_temp as $$
begin
    perform pg_notify('postern', 'dkim ' || coalesce(new.domain, old.domain));
    return null;
end
$$;
comment on function postern.tell_dkim is 'Trigger: a DKIM key has changed.';
create trigger tell after insert or update or delete on postern.dkim_key
    for each row execute function postern.tell_dkim();

-- ---- verifiers ----

create function postern.scram_iterations() returns integer
language sql stable security definer set search_path = postern, pg_temp as $$
    select least(greatest(value::integer, 4096), 65536) from postern.setting where name = 'scram_iterations';
$$;
comment on function postern.scram_iterations is 'PBKDF2 iterations of new verifiers, and of those for unknown users.';

create function postern.server_secret() returns text
language sql stable security definer set search_path = postern, pg_temp as $$
    select value from postern.setting where name = 'server_secret';
$$;
comment on function postern.server_secret is 'Key of the salts that unknown users are shown.';

create function postern.make_verifier(password text) returns text
language plpgsql security definer set search_path = postern, pg_temp as $$
declare
    iterations integer := postern.scram_iterations();
    secret bytea := convert_to(password, 'UTF8');
    salt bytea := postern.gen_random_bytes(16);
    u bytea := postern.hmac(salt || '\x00000001'::bytea, secret, 'sha256');
    mixed bit(256) := ('x' || encode(u, 'hex'))::bit(256);
    salted bytea;
    client_key bytea;
begin
    for i in 2 .. iterations loop
        u := postern.hmac(u, secret, 'sha256');
        mixed := mixed # ('x' || encode(u, 'hex'))::bit(256);
    end loop;
    salted := decode(lpad(to_hex(substring(mixed from 1 for 64)::bigint), 16, '0') || lpad(to_hex(substring(mixed from 65 for 64)::bigint), 16, '0')
        || lpad(to_hex(substring(mixed from 129 for 64)::bigint), 16, '0') || lpad(to_hex(substring(mixed from 193 for 64)::bigint), 16, '0'), 'hex');
    client_key := postern.hmac('Client Key', salted, 'sha256');
    return 'SCRAM-SHA-256$' || iterations || ':' || encode(salt, 'base64') || '$'
        || encode(postern.digest(client_key, 'sha256'), 'base64') || ':'
        || encode(postern.hmac('Server Key', salted, 'sha256'), 'base64');
end
$$;
comment on function postern.make_verifier is 'SCRAM-SHA-256 verifier of a clear password (RFC 5803, RFC 7677).';

create function postern.verifier_of(password text) returns text
language plpgsql security definer set search_path = postern, pg_temp as $$
declare
    usable boolean := length(password) between 1 and 256 and password !~ '[[:cntrl:]]';
begin
    -- A ready verifier. One that is almost right is a mistake, not a password.
    if password like 'SCRAM-SHA-256$%' then
        if password !~ '^SCRAM-SHA-256\$[1-9][0-9]{3,4}:([A-Za-z0-9+/]{4}){1,20}([A-Za-z0-9+/]{4}|[A-Za-z0-9+/]{3}=|[A-Za-z0-9+/]{2}==)\$[A-Za-z0-9+/]{43}=:[A-Za-z0-9+/]{43}=$'
            or substring(password from '\$([0-9]+):')::integer not between 4096 and 65536 then
            raise exception 'this verifier cannot be used'
                using hint = 'SCRAM-SHA-256$iterations:salt$StoredKey:ServerKey; 4096 to 65536 iterations, all else in base64.';
        end if;
        return password;
    end if;
    -- Apart, because a database that is not in UTF-8 cannot ask this at all.
    if usable and password ~ '[^ -~]' then
        usable := password is nfkc normalized;
    end if;
    if usable is not true then
        raise exception 'this password cannot be used'
            using hint = '1 to 256 printable characters, in Unicode form NFKC, or a verifier SCRAM-SHA-256$...';
    end if;
    return postern.make_verifier(password);
end
$$;
comment on function postern.verifier_of is 'The verifier of a clear password; a ready verifier stays as it is.';

-- ---- what admins call ----

create function postern.account_id(p_login text) returns bigint
language plpgsql stable security definer set search_path = postern, pg_temp as $$
declare
    found_id bigint;
begin
    select id into found_id from postern.account where lower(login collate "C") = lower(p_login collate "C");
    if found_id is null then
        raise exception 'there is no account "%"', p_login
            using hint = 'select login from postern.account_overview order by 1;';
    end if;
    return found_id;
end
$$;
comment on function postern.account_id is 'Number of the account with that login.';

create function postern.account_create(login text, password text default null, plan text default 'default') returns bigint
language plpgsql security definer set search_path = postern, pg_temp as $$
declare
    new_id bigint;
begin
    if not exists (select from postern.plan p where p.name = account_create.plan) then
        raise exception 'there is no plan "%"', plan using hint = 'select postern.plan_set(' || quote_nullable(plan) || ');';
    end if;
    insert into postern.account (login, plan) values (account_create.login, account_create.plan) returning id into new_id;
    if password is not null then
        insert into postern.credential (account, verifier) values (new_id, postern.verifier_of(password));
    end if;
    perform postern.note('account_create', login, plan);
    return new_id;
exception
    when unique_violation then
        raise exception 'there is an account "%" already', login using hint = 'Use postern.account_set_password to change it.';
    when check_violation or not_null_violation then
        raise exception '"%" cannot be a login', left(login, 60) using hint = '1 to 254 octets without blanks; usually an address.';
end
$$;
comment on function postern.account_create is 'Makes an account. The password may be clear or a ready verifier; null: none yet.';

create function postern.account_set_password(login text, password text) returns void
language plpgsql security definer set search_path = postern, pg_temp as $$
declare
    a bigint := postern.account_id(login);
    v text := postern.verifier_of(password);
begin
    update postern.credential set revoked_at = now() where account = a and label = 'password' and revoked_at is null;
    insert into postern.credential (account, verifier) values (a, v);
    perform postern.note('account_set_password', login);
end
$$;
comment on function postern.account_set_password is 'Replaces the password; it may be clear or a ready verifier.';

create function postern.account_suspend(login text, reason text) returns void
language plpgsql security definer set search_path = postern, pg_temp as $$
begin
    update postern.account a set state = 'suspended', state_reason = reason
        where id = postern.account_id(account_suspend.login) and state <> 'closed';
    if not found then
        raise exception 'the account "%" is closed', login;
    end if;
    perform postern.note('account_suspend', login, reason);
end
$$;
comment on function postern.account_suspend is 'Stops logins and new messages of an account until account_resume.';

create function postern.account_resume(login text) returns void
language plpgsql security definer set search_path = postern, pg_temp as $$
begin
    update postern.account set state = 'active', state_reason = null
        where id = postern.account_id(account_resume.login) and state = 'suspended';
    if not found then
        raise exception 'the account "%" is not suspended', login;
    end if;
    perform postern.note('account_resume', login);
end
$$;
comment on function postern.account_resume is 'Lets a suspended account go on.';

create function postern.account_close(login text) returns void
language plpgsql security definer set search_path = postern, pg_temp as $$
begin
    update postern.account set state = 'closed' where id = postern.account_id(account_close.login);
    perform postern.note('account_close', login);
end
$$;
comment on function postern.account_close is 'Closes an account for good; its login stays taken.';

create function postern.app_password_create(login text, label text, expires_at timestamptz default null) returns text
language plpgsql security definer set search_path = postern, pg_temp as $$
declare
    a bigint := postern.account_id(login);
    secret text := translate(encode(postern.gen_random_bytes(15), 'base64'), '+/', 'xy');
begin
    -- PLAIN and LOGIN do not say which password is meant: auth tries them all, and no more than these.
    if (select count(*) >= 32 from postern.credential c where c.account = a and c.revoked_at is null
            and (c.expires_at is null or c.expires_at > now())) then
        raise exception 'the account "%" has 32 passwords already', login
            using hint = 'Take one back: postern.credential_revoke.';
    end if;
    insert into postern.credential (account, label, verifier, expires_at)
        values (a, label, postern.make_verifier(secret), app_password_create.expires_at);
    perform postern.note('app_password_create', login, label);
    return secret;
exception when unique_violation then
    raise exception 'the account "%" has a password "%" already', login, label
        using hint = 'Choose another label, or postern.credential_revoke it first.';
end
$$;
comment on function postern.app_password_create is 'A password for one device, of at most 32 in all; returned this once, stored as a verifier.';

create function postern.credential_revoke(login text, label text) returns void
language plpgsql security definer set search_path = postern, pg_temp as $$
begin
    update postern.credential c set revoked_at = now()
        where account = postern.account_id(login) and c.label = credential_revoke.label and revoked_at is null;
    if not found then
        raise exception 'the account "%" has no password "%"', login, label;
    end if;
    perform postern.note('credential_revoke', login, label);
end
$$;
comment on function postern.credential_revoke is 'Takes one password back.';

create function postern.sender_grant(login text, pattern text) returns void
language plpgsql security definer set search_path = postern, pg_temp as $$
declare
    a bigint := postern.account_id(login);
begin
    -- All of them travel to a session in one datagram.
    if (select count(*) >= 500 or sum(octet_length(s.pattern)) > 50000 from postern.sender s where account = a) then
        raise exception 'the account "%" has 500 sender rights, or 50000 octets of them, already', login
            using hint = 'Grant a whole domain: @domain.';
    end if;
    insert into postern.sender values (a, sender_grant.pattern) on conflict do nothing;
    perform postern.note('sender_grant', login, pattern);
exception when check_violation or not_null_violation then
    raise exception '"%" is no sender pattern', left(pattern, 60) using hint = 'user@domain, @domain, @.domain or user+*@domain';
end
$$;
comment on function postern.sender_grant is 'Lets an account send as an address or a domain.';

create function postern.sender_revoke(login text, pattern text) returns void
language plpgsql security definer set search_path = postern, pg_temp as $$
begin
    delete from postern.sender s where account = postern.account_id(login) and s.pattern = sender_revoke.pattern;
    if not found then
        raise exception 'the account "%" has no sender right "%"', login, pattern;
    end if;
    perform postern.note('sender_revoke', login, pattern);
end
$$;
comment on function postern.sender_revoke is 'Takes a sender right back.';

create function postern.plan_set(name text, message_bytes bigint default null, recipients_per_message integer default null,
    connections integer default null, sign_required boolean default false) returns void
language plpgsql security definer set search_path = postern, pg_temp as $$
begin
    insert into postern.plan as p values (plan_set.name, plan_set.message_bytes, plan_set.recipients_per_message, plan_set.connections, plan_set.sign_required)
        on conflict on constraint plan_pkey do update set message_bytes = excluded.message_bytes,
            recipients_per_message = excluded.recipients_per_message, connections = excluded.connections, sign_required = excluded.sign_required;
    perform postern.note('plan_set', name);
exception when check_violation or not_null_violation then
    raise exception 'this is no plan: "%"', left(name, 60)
        using hint = 'A name of letters, digits and -_. (at most 64), limits above 0, sign_required true or false.';
end
$$;
comment on function postern.plan_set is 'Makes or changes a plan; what is not given is unlimited.';

create function postern.dkim_key_add(domain text, selector text, algorithm text, private_key text, public_record text) returns text
language plpgsql security definer set search_path = postern, pg_temp as $$
declare
    first boolean := not exists (select from postern.dkim_key k where k.domain = lower(dkim_key_add.domain collate "C")
        and k.algorithm = dkim_key_add.algorithm and k.state = 'active');
begin
    insert into postern.dkim_key (domain, selector, algorithm, private_key, public_record, state)
        values (lower(dkim_key_add.domain collate "C"), dkim_key_add.selector, dkim_key_add.algorithm, dkim_key_add.private_key,
            dkim_key_add.public_record, case when first then 'active' else 'pending' end);
    perform postern.note('dkim_key_add', domain, selector || ' ' || algorithm);
    return case when first then 'active' else 'pending' end;
exception when unique_violation then
    raise exception 'the domain "%" has a key with selector "%" already', domain, selector using hint = 'Choose another selector.';
end
$$;
comment on function postern.dkim_key_add is 'Stores a key; the first of an algorithm for a domain signs at once. Returns its state.';

-- ---- what the processes call ----

create function postern.auth_lookup(p_login text)
returns table (account bigint, login text, state text, state_reason text, route text, message_bytes bigint, recipients integer,
    connections integer, sign_required boolean, senders text[], credentials bigint[], verifiers text[], expires_ms bigint)
language sql stable security definer set search_path = postern, pg_temp as $$
    select a.id, a.login, a.state, a.state_reason, a.route, p.message_bytes, p.recipients_per_message, p.connections,
        p.sign_required, (select array_agg(s.pattern) from postern.sender s where s.account = a.id)
            -- An address, not what would be a pattern of more than one.
            || case when a.login ~ '^[^@*]+@[^@*.][^@*]*$' then array[a.login] else '{}'::text[] end,
        c.ids, c.verifiers, c.expires_ms
    from postern.account a
    join postern.plan p on p.name = a.plan
    left join lateral (
        select array_agg(c.id order by c.label <> 'password', c.id) as ids,
            array_agg(c.verifier order by c.label <> 'password', c.id) as verifiers,
            (extract(epoch from min(c.expires_at) - now()) * 1000)::bigint as expires_ms
        from postern.credential c
        where c.account = a.id and c.kind = 'scram-sha-256' and c.revoked_at is null
            and (c.expires_at is null or c.expires_at > now())
    ) c on true
    where lower(a.login collate "C") = lower(p_login collate "C") and a.state <> 'closed';
$$;
comment on function postern.auth_lookup is 'For auth: everything a login needs, the main password first (SCRAM knows one); no row for unknown and closed accounts.';

create function postern.credential_used(p_credential bigint) returns void
language plpgsql security definer set search_path = postern, pg_temp as $$
begin
    perform set_config('synchronous_commit', 'off', true);
    update postern.credential set last_used_at = now()
        where id = p_credential and (last_used_at is null or last_used_at < now() - interval '1 minute');
end
$$;
comment on function postern.credential_used is 'For auth: notes a login.';

create function postern.dkim_keys(p_domain text)
returns table (selector text, algorithm text, private_key text)
language sql stable security definer set search_path = postern, pg_temp as $$
    select k.selector, k.algorithm, k.private_key from postern.dkim_key k
        where k.domain = lower(p_domain collate "C") and k.state = 'active' order by k.algorithm desc;
$$;
comment on function postern.dkim_keys is 'For relay: the active keys of a domain.';

create view postern.account_overview as
    select a.login, a.state, a.state_reason, a.plan, a.route, a.created_at,
        (select count(*) from postern.credential c where c.account = a.id and c.revoked_at is null) as passwords,
        (select max(last_used_at) from postern.credential c where c.account = a.id) as last_login,
        (select array_agg(pattern order by pattern) from postern.sender s where s.account = a.id) as senders
    from postern.account a;
comment on view postern.account_overview is 'Accounts at a glance.';

grant select on postern.account_overview, postern.plan, postern.audit to postern_admin;
grant execute on function postern.account_create, postern.account_set_password, postern.account_suspend, postern.account_resume,
    postern.account_close, postern.app_password_create, postern.credential_revoke, postern.sender_grant, postern.sender_revoke,
    postern.plan_set, postern.dkim_key_add to postern_admin;
grant execute on function postern.auth_lookup, postern.credential_used, postern.server_secret, postern.scram_iterations to postern_auth;
grant execute on function postern.dkim_keys to postern_relay;
reset role;
-- pgcrypto is for the functions above, not for everybody.
do $$
declare
    f regprocedure;
begin
    for f in select objid::regprocedure from pg_catalog.pg_depend d join pg_catalog.pg_extension e on e.oid = d.refobjid
            where e.extname = 'pgcrypto' and d.classid = 'pg_proc'::regclass and d.deptype = 'e' loop
        execute format('revoke execute on function %s from public', f);
        execute format('grant execute on function %s to postern_owner', f);
    end loop;
end
$$;
