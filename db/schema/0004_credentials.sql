-- SPDX-License-Identifier: ISC
-- What accounts log in with: passwords, app passwords that are tied to something, hashes of
-- other systems, certificates.

set role postern_owner;

alter table postern.credential
    add column mechanisms text[] constraint credential_mechanisms
        check (cardinality(mechanisms) > 0 and mechanisms <@ array['PLAIN', 'LOGIN', 'SCRAM-SHA-256']),
    add column networks cidr[] constraint credential_networks
        check (cardinality(networks) between 1 and 64 and array_position(networks, null) is null),
    add column sender text constraint credential_sender
        check (sender ~ '^[^[:cntrl:][:space:]@*]+@[^[:cntrl:][:space:]@*.][^[:cntrl:][:space:]@*]*$' and octet_length(sender) <= 254),
    add constraint credential_digest check (kind not in ('token', 'certificate') or verifier ~ '^[0-9a-f]{64}$');
-- Whose a certificate is, no second one says.
create unique index credential_certificate on postern.credential (verifier) where kind = 'certificate' and revoked_at is null;
comment on table postern.credential is 'What an account logs in with; nothing here lets anybody log in who reads it.';
comment on column postern.credential.kind is
    'scram-sha-256: a password; token: an app password; crypt: a hash of another system, until its first good login; certificate.';
comment on column postern.credential.label is 'Its name within the account: "password", or that of a device or server.';
comment on column postern.credential.verifier is
    'scram-sha-256: SCRAM-SHA-256$iterations:salt$StoredKey:ServerKey, as PostgreSQL itself writes it; crypt: $6$, $5$, $y$, $2b$, {SSHA}, {SSHA256}, {SSHA512}; token, certificate: SHA-256, hexadecimal.';
comment on column postern.credential.mechanisms is 'The only ones it is good for, of PLAIN, LOGIN, SCRAM-SHA-256; null: all.';
comment on column postern.credential.networks is 'The only ones it is good from; null: anywhere.';
comment on column postern.credential.sender is 'The only address that its sessions may send as, while the account may; null: all that the account may.';
comment on column postern.credential.last_used_at is 'Last login, by the minute, some seconds later.';
comment on index postern.credential_certificate is 'Finds the account of a certificate.';

-- What was right stays right when another credential comes. And that an imported hash has become a
-- verifier of the same password concerns nobody.
drop trigger tell on postern.credential;
create trigger tell after delete on postern.credential
    for each row execute function postern.tell_account();
create trigger tell_update after update of account, kind, verifier, mechanisms, networks, sender, expires_at, revoked_at on postern.credential
    for each row when (not (old.kind = 'crypt' and new.kind = 'scram-sha-256')) execute function postern.tell_account();
comment on trigger tell on postern.credential is 'An account has a credential less.';
comment on trigger tell_update on postern.credential is 'A credential has changed.';

-- ---- passwords ----

create function postern.prepared(password text) returns text
language plpgsql immutable set search_path = postern, pg_temp as $$
declare
    -- Tables C.1.2, B.1 and C.2 to C.9 of RFC 3454.
    blank constant text := '[\u00A0\u1680\u2000-\u200B\u202F\u205F\u3000]';
    nothing constant text := '[\u00AD\u034F\u1806\u180B-\u180D\u200C\u200D\u2060\uFE00-\uFE0F\uFEFF]';
    prohibited constant text := '[\u0001-\u001F\u007F-\u009F\u06DD\u070F\u180E\u200E\u200F\u2028-\u202E\u2061-\u2063\u206A-\u206F'
        || '\u2FF0-\u2FFB\u0340\u0341\uE000-\uF8FF\uFDD0-\uFDEF\uFFF9-\uFFFF\U0001D173-\U0001D17A\U000E0001'
        || '\U000E0020-\U000E007F\U000F0000-\U0010FFFF'
        || '\U0001FFFE\U0001FFFF\U0002FFFE\U0002FFFF\U0003FFFE\U0003FFFF\U0004FFFE\U0004FFFF\U0005FFFE\U0005FFFF\U0006FFFE\U0006FFFF\U0007FFFE\U0007FFFF'
        || '\U0008FFFE\U0008FFFF\U0009FFFE\U0009FFFF\U000AFFFE\U000AFFFF\U000BFFFE\U000BFFFF\U000CFFFE\U000CFFFF\U000DFFFE\U000DFFFF\U000EFFFE\U000EFFFF]';
    -- What SASLprep, which is of Unicode 3.2, leaves as it is and newer libraries do not.
    doubtful constant text := '[\u03F9\u10FC\u1D2C-\u1DBF\u2090-\u209C\u213B-\u213C\u2150-\u2152\u2189\u2C7C-\u2C7D\u2D6F'
            || '\u321D-\u321E\u3244-\u3250\u327C-\u327E\u32CC-\u32CF\u32FF\u3377-\u337A\u33DE-\u33DF\u33FF'
            || '\uA69C-\uA69D\uA770\uA7F2-\uA7F9\uAB5C-\uAB69\uFA2E-\uFA2F\uFA6B-\uFAD9\uFE10-\uFE19\uFE47-\uFE48'
            || '\U00010781-\U000107BA\U0001D4C1\U0001D6A4-\U0001D6A5\U0001D7CA-\U0001D7CB\U0001EE00-\U0001EEBB'
            || '\U0001F100-\U0001F251\U0001FBF0-\U0001FBF9\U0002F868\U0002F874\U0002F91F\U0002F95F\U0002F9BF]';
begin
    -- Apart, because a database that is not in UTF-8 cannot ask this at all.
    if password ~ '[^ -~]' then
        if current_setting('server_encoding') <> 'UTF8' then
            return null;
        end if;
        if password ~ doubtful then
            return null;
        end if;
        password := normalize(regexp_replace(regexp_replace(password, blank, ' ', 'g'), nothing, '', 'g'), nfkc);
        if password ~ prohibited then
            return null;
        end if;
    end if;
    return case when length(password) between 1 and 256 then password end;
end
$$;
comment on function postern.prepared is
    'A password as SASLprep (RFC 4013) makes it, but that letters from right to left may stand with others; null: cannot be used.';

create function postern.is_verifier(verifier text) returns boolean
language sql immutable set search_path = postern, pg_temp as $$
    select verifier ~ '^SCRAM-SHA-256\$[1-9][0-9]{3,4}:([A-Za-z0-9+/]{4}){1,20}([A-Za-z0-9+/]{4}|[A-Za-z0-9+/]{3}=|[A-Za-z0-9+/]{2}==)\$[A-Za-z0-9+/]{43}=:[A-Za-z0-9+/]{43}=$'
        and substring(verifier from '^SCRAM-SHA-256\$([0-9]+):')::integer between 4096 and 65536;
$$;
comment on function postern.is_verifier is 'Whether it is a SCRAM-SHA-256 verifier that can be used.';

create or replace function postern.verifier_of(password text) returns text
language plpgsql security definer set search_path = postern, pg_temp as $$
declare
    usable text := postern.prepared(password);
begin
    -- A ready verifier. One that is almost right is a mistake, not a password; so is a hash.
    if password like 'SCRAM-SHA-256$%' then
        if postern.is_verifier(password) is not true then
            raise exception 'this verifier cannot be used'
                using hint = 'SCRAM-SHA-256$iterations:salt$StoredKey:ServerKey; 4096 to 65536 iterations, all else in base64.';
        end if;
        return password;
    end if;
    if password ~ '^(\$(6|5|y|2[aby])\$.{50}|\{(SSHA|CRYPT|SHA256-CRYPT|SHA512-CRYPT|BLF-CRYPT))' then
        raise exception 'this is the hash of a password, not a password'
            using hint = 'postern.account_import makes an account with the hash of another system.';
    end if;
    if usable is null then
        raise exception 'this password cannot be used'
            using hint = '1 to 256 printable characters (RFC 4013), or a verifier SCRAM-SHA-256$...';
    end if;
    return postern.make_verifier(usable);
end
$$;
comment on function postern.verifier_of is 'The verifier of a clear password, prepared by SASLprep; a ready verifier stays as it is.';

create function postern.crypt_hash_of(hash text) returns text
language plpgsql immutable set search_path = postern, pg_temp as $$
declare
    -- Dovecot and LDAP name the scheme, in any case.
    h text := regexp_replace(hash, '^\{(CRYPT|SHA256-CRYPT|SHA512-CRYPT|BLF-CRYPT)\}', '', 'i');
    scheme text := upper(substring(h from '^\{([A-Za-z0-9]+)\}') collate "C");
    encoded text := substring(h from '^\{[A-Za-z0-9]+\}(.*)$');
    digest_size integer := case scheme when 'SSHA' then 20 when 'SSHA256' then 32 when 'SSHA512' then 64 end;
    -- For errors; never more of it, it may be a password by mistake.
    told text := coalesce(substring(hash from '^(\$[A-Za-z0-9]{1,4}\$|\{[-.A-Za-z0-9]{1,16}\})'), 'no scheme');
    bearable boolean;
begin
    if h ~ '^\$6\$(rounds=[1-9][0-9]{3,8}\$)?[./A-Za-z0-9]{1,16}\$[./A-Za-z0-9]{86}$'
        or h ~ '^\$5\$(rounds=[1-9][0-9]{3,8}\$)?[./A-Za-z0-9]{1,16}\$[./A-Za-z0-9]{43}$' then
        bearable := coalesce(substring(h from 'rounds=([0-9]+)')::integer, 5000) <= 100000;
    elsif h ~ '^\$2[aby]\$[0-9]{2}\$[./A-Za-z0-9]{53}$' then
        bearable := substr(h, 5, 2)::integer between 4 and 12;
    elsif h ~ '^\$y\$[./A-Za-z0-9]+\$[./A-Za-z0-9]{1,86}\$[./A-Za-z0-9]{43}$' then
        bearable := split_part(h, '$', 3) in ('j75', 'j85', 'j7T', 'j8T', 'j9T', 'jAT', 'jBT');
    elsif digest_size is not null and encoded ~ '^([A-Za-z0-9+/]{4})+([A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?$'
        and octet_length(decode(encoded, 'base64')) between digest_size + 1 and digest_size + 64
        and translate(encode(decode(encoded, 'base64'), 'base64'), E'\n', '') = encoded then
        h := '{' || scheme || '}' || encoded;
        bearable := true;
    end if;
    if bearable is null then
        raise exception 'this hash cannot be imported (%)', told
            using hint = '$6$, $5$, $y$, $2a$, $2b$, $2y$, {SSHA}, {SSHA256} or {SSHA512}, whole; also behind {CRYPT}, {SHA512-CRYPT}, {SHA256-CRYPT}, {BLF-CRYPT}.';
    elsif not bearable then
        raise exception 'this hash costs too much at each login (%)', told
            using hint = 'At most rounds=100000 (passlib writes 656000 by default), $2b$12$, $y$jBT$; give this account a new password.';
    end if;
    return h;
end
$$;
comment on function postern.crypt_hash_of is 'A hash of another system in the form that auth checks; an error if it does not, or if a login would cost too much.';

-- ---- what admins call ----

create function postern.may_send(p_account bigint, p_address text) returns boolean
language sql stable security definer set search_path = postern, pg_temp as $$
    select exists (
        select from (
            select s.pattern from postern.sender s where s.account = p_account
            union all
            select a.login from postern.account a where a.id = p_account and a.login ~ '^[^@*]+@[^@*.][^@*]*$'
        ) rights,
        lateral (select substring(lower(pattern collate "C") from '^(.*)@') as local, substring(lower(pattern collate "C") from '@([^@]*)$') as domain) p,
        lateral (select substring(lower(p_address collate "C") from '^(.*)@') as local, substring(lower(p_address collate "C") from '@([^@]*)$') as domain) a
        where (p.domain = a.domain or (p.domain like '.%' and right(a.domain, length(p.domain)) = p.domain and length(a.domain) > length(p.domain)))
            and (p.local in ('', a.local)
                or (p.local like '%+*' and left(a.local, length(p.local) - 1) = left(p.local, -1) and length(a.local) >= length(p.local))));
$$;
comment on function postern.may_send is 'Whether a sender right of the account covers the address.';

create function postern.credential_insert(p_login text, p_kind text, p_label text, p_verifier text, p_mechanisms text[] default null,
    p_networks cidr[] default null, p_sender text default null, p_expires_at timestamptz default null) returns void
language plpgsql security definer set search_path = postern, pg_temp as $$
declare
    a bigint := (postern.account_locked(p_login)).id;
begin
    -- PLAIN and LOGIN do not say which password is meant: auth tries them all, and no more than these.
    if (select count(*) >= 32 from postern.credential c where c.account = a and c.revoked_at is null
            and (c.expires_at is null or c.expires_at > now())) then
        raise exception 'the account "%" has 32 passwords already', p_login
            using hint = 'Take one back: postern.credential_revoke.';
    end if;
    if p_label is null or p_label !~ '^[^[:cntrl:]]{1,100}$' then
        raise exception 'this cannot be a label' using hint = '1 to 100 printable characters: which device or server has it.';
    end if;
    if exists (select from postern.credential c where c.account = a and c.label = p_label and c.revoked_at is null)
        -- That of the password is kept for it, also while there is none.
        or (p_label = 'password' and p_kind in ('token', 'certificate')) then
        raise exception 'the account "%" has a password "%" already', p_login, p_label
            using hint = 'Choose another label, or postern.credential_revoke it first.';
    end if;
    insert into postern.credential (account, kind, label, verifier, mechanisms, networks, sender, expires_at)
        values (a, p_kind, p_label, p_verifier, p_mechanisms, p_networks, p_sender, p_expires_at);
end
$$;
comment on function postern.credential_insert is 'Gives an account a credential, of at most 32.';

create or replace function postern.account_set_password(login text, password text) returns void
language plpgsql security definer set search_path = postern, pg_temp as $$
declare
    v text := postern.verifier_of(password);
    a bigint := (postern.account_locked(login)).id;
begin
    update postern.credential set revoked_at = now() where account = a and label = 'password' and revoked_at is null;
    perform postern.credential_insert(login, 'scram-sha-256', 'password', v);
    perform postern.note('account_set_password', login);
end
$$;

create function postern.account_import(login text, crypt_hash text, plan text default 'default') returns bigint
language plpgsql security definer set search_path = postern, pg_temp as $$
declare
    hash text := postern.crypt_hash_of(crypt_hash);
    a bigint := postern.account_create(login, null, plan);
begin
    perform postern.credential_insert(login, 'crypt', 'password', hash);
    perform postern.note('account_import', login, postern.changed('password', null, 'hash ' || substring(hash from '^(\$[^$]+\$|\{[^}]+\})')));
    return a;
end
$$;
comment on function postern.account_import is
    'Makes an account with the password hash of another system: $6$, $5$, $y$, $2b$, {SSHA}, {SSHA256}, {SSHA512}. The first good login by PLAIN or LOGIN turns it into a verifier; until then SCRAM cannot succeed.';

drop function postern.app_password_create(text, text, timestamptz);
create function postern.app_password_create(login text, label text, mechanisms text[] default null, networks cidr[] default null,
    sender text default null, expires_at timestamptz default null) returns text
language plpgsql security definer set search_path = postern, pg_temp as $$
declare
    -- Of 32 characters that nobody takes for another: 5 bits of each octet, 140 in all, in groups of four.
    octets bytea := postern.gen_random_bytes(28);
    secret text := (select string_agg(substr('abcdefghijkmnpqrstuvwxyz23456789', (get_byte(octets, i) & 31) + 1, 1), '' order by i)
        from generate_series(0, 27) i);
    allowed text[] := (select array_agg(distinct upper(m collate "C") order by upper(m collate "C"))
        from unnest(app_password_create.mechanisms) m);
    ends_at timestamptz := nullif(app_password_create.expires_at, 'infinity');
begin
    if cardinality(app_password_create.mechanisms) = 0 or not allowed <@ array['PLAIN', 'LOGIN'] or array_position(allowed, null) is not null then
        raise exception 'these mechanisms cannot be those of an app password: %', array_to_string(app_password_create.mechanisms, ', ', 'null')
            using hint = 'array[''PLAIN''], array[''LOGIN''], or null for both; SCRAM knows only the main password.';
    end if;
    if sender is not null and not postern.may_send(postern.account_id(login), sender) then
        raise exception 'the account "%" may not send as "%"', login, sender
            using hint = 'One address that postern.sender_grant lets it send as, directly or by a pattern.';
    end if;
    if ends_at <= now() then
        raise exception 'this is over already: %', ends_at using hint = 'A time to come, or null: no end.';
    end if;
    -- One fast hash without salt: nobody guesses 140 random bits, so there is nothing to slow down, and no two are the same.
    perform postern.credential_insert(login, 'token', label, encode(postern.digest(secret, 'sha256'), 'hex'), allowed,
        app_password_create.networks, app_password_create.sender, ends_at);
    perform postern.note('app_password_create', login, concat_ws('; ', postern.changed(label, null, 'app password'),
        'mechanisms: ' || array_to_string(allowed, ' '), 'networks: ' || array_to_string(app_password_create.networks, ' '),
        'sender: ' || app_password_create.sender, 'until: ' || ends_at));
    return regexp_replace(secret, '(.{4})(?=.)', '\1-', 'g');
exception when check_violation then
    raise exception 'this app password cannot be'
        using hint = 'networks: 1 to 64, like array[''192.0.2.0/24'']::cidr[]; sender: one address, no pattern.';
end
$$;
comment on function postern.app_password_create is
    'A password for one device or server, shown this once; for PLAIN and LOGIN. It may be good only for some mechanisms, from some networks, for one sender, until a time.';

create function postern.certificate_grant(login text, sha256_fingerprint text, label text) returns void
language plpgsql security definer set search_path = postern, pg_temp as $$
declare
    -- As openssl writes it, with colons and in upper case, or without.
    fingerprint text := lower(replace(sha256_fingerprint, ':', '') collate "C");
    holder text;
begin
    if fingerprint is null or fingerprint !~ '^[0-9a-f]{64}$' then
        raise exception 'this is no fingerprint of a certificate'
            using hint = '64 hexadecimal digits: openssl x509 -noout -fingerprint -sha256 -in FILE';
    end if;
    perform postern.credential_insert(login, 'certificate', label, fingerprint);
    perform postern.note('certificate_grant', login, postern.changed(label, null, 'certificate ' || fingerprint));
exception when unique_violation then
    select format('the account "%s" has this certificate already, as "%s"', a.login, c.label) into holder
        from postern.credential c join postern.account a on a.id = c.account
        where c.kind = 'certificate' and c.verifier = fingerprint and c.revoked_at is null;
    raise exception '%', holder using hint = 'postern.credential_revoke it there first.';
end
$$;
comment on function postern.certificate_grant is 'Lets an account log in with a client certificate, named by its SHA-256 fingerprint.';

create or replace function postern.credential_revoke(login text, label text) returns void
language plpgsql security definer set search_path = postern, pg_temp as $$
declare
    a bigint := (postern.account_locked(login)).id;
    revoked text;
begin
    update postern.credential c set revoked_at = now()
        where account = a and c.label = credential_revoke.label and revoked_at is null
        returning case kind when 'token' then 'app password' when 'certificate' then 'certificate ' || verifier else 'password' end
        into revoked;
    if not found then
        raise exception 'the account "%" has no password "%"', login, label
            using hint = 'select label, kind from postern.credential_overview where login = ' || quote_literal(login) || ';';
    end if;
    perform postern.note('credential_revoke', login, postern.changed(label, revoked, null));
end
$$;
comment on function postern.credential_revoke is 'Takes one password, app password or certificate back.';

create view postern.credential_overview as
    select a.login, c.label, c.kind, c.mechanisms, c.networks, c.sender, c.created_at, c.expires_at, c.last_used_at, c.revoked_at
    from postern.credential c join postern.account a on a.id = c.account;
comment on view postern.credential_overview is 'What accounts log in with, and since when not any more.';
comment on column postern.credential_overview.login is 'Whose it is.';
comment on column postern.credential_overview.label is 'Its name within the account.';
comment on column postern.credential_overview.kind is 'scram-sha-256, token, crypt or certificate.';
comment on column postern.credential_overview.mechanisms is 'The only ones it is good for; null: all.';
comment on column postern.credential_overview.networks is 'The only ones it is good from; null: anywhere.';
comment on column postern.credential_overview.sender is 'The only address that its sessions may send as; null: all that the account may.';
comment on column postern.credential_overview.created_at is 'When it was made.';
comment on column postern.credential_overview.expires_at is 'Not valid from then on.';
comment on column postern.credential_overview.last_used_at is 'Last login, by the minute.';
comment on column postern.credential_overview.revoked_at is 'When it was taken back.';

-- ---- what the processes call ----

-- SQL without settings of its own: it becomes a part of the query that calls it.
create function postern.counts_new_recipients(p_account bigint, p_plan text) returns boolean
language sql stable as $$
    select exists (select from postern.rate_limit l where l.plan is null and l.account = p_account and l.measure = 'new_recipients')
        or exists (select from postern.rate_limit l where l.plan = p_plan and l.measure = 'new_recipients');
$$;
comment on function postern.counts_new_recipients is 'Whether a limit of new recipients is in force.';

drop function postern.auth_lookup(text);
create function postern.auth_lookup(p_login text)
returns table (account bigint, login text, state text, state_reason text, route text, message_bytes bigint, recipients integer,
    connections integer, sign_required boolean, senders text[], credentials bigint[], kinds text[], verifiers text[],
    mechanisms text[], networks text[], sender text[], expires_ms bigint, add_sender boolean, counts_new_recipients boolean)
language plpgsql stable security definer set search_path = postern, pg_temp as $$
#variable_conflict use_column
begin
    -- In PL/pgSQL, because that keeps its plan: a function in SQL would be planned at every login.
    return query select a.id, a.login, a.state, a.state_reason, a.route, p.message_bytes, p.recipients_per_message, p.connections,
        p.sign_required, (select array_agg(s.pattern) from postern.sender s where s.account = a.id)
            -- An address, not what would be a pattern of more than one.
            || case when a.login ~ '^[^@*]+@[^@*.][^@*]*$' then array[a.login] else '{}'::text[] end,
        c.ids, c.kinds, c.verifiers, c.mechanisms, c.networks, c.sender, c.expires_ms, p.add_sender,
        postern.counts_new_recipients(a.id, a.plan)
    from postern.account a
    join postern.plan p on p.name = a.plan
    left join lateral (
        select array_agg(o.id) as ids, array_agg(o.kind) as kinds, array_agg(o.verifier) as verifiers,
            array_agg(coalesce(array_to_string(o.mechanisms, ' '), '')) as mechanisms,
            array_agg(coalesce(array_to_string(o.networks, ' '), '')) as networks,
            array_agg(coalesce(o.sender, '')) as sender,
            (extract(epoch from min(o.expires_at) filter (where isfinite(o.expires_at)) - now()) * 1000)::bigint as expires_ms
        from (
            select * from postern.credential t
            where t.account = a.id and t.revoked_at is null and (t.expires_at is null or t.expires_at > now())
            order by t.kind <> 'token', t.label <> 'password', t.id
        ) o
    ) c on true
    where lower(a.login collate "C") = lower(p_login collate "C") and a.state <> 'closed';
end
$$;
comment on function postern.auth_lookup is
    'For auth: everything a login needs; of the credentials what costs least first, then the main password (SCRAM knows one). No row for unknown and closed accounts.';

create function postern.scram_shapes() returns table (iterations integer, salt_octets integer)
language sql stable security definer set search_path = postern, pg_temp as $$
    -- At places of the table that stay when it grows, until it has doubled; what follows one place is bounded.
    with last as (
        select coalesce(max(c.id), 0) as id from postern.credential c
    ), mask as (
        select (1::bigint << ceil(ln(last.id + 1) / ln(2))::integer) - 1 as mask from last
    ), place as (
        select slot, case when hash & mask <= last.id then hash & mask else hash & (mask >> 1) end as id
        from last, mask, generate_series(1, 128) slot, lateral (select pg_catalog.hashint8extended(slot, 0) as hash) h
    )
    select split_part(near.parameters, ':', 1)::integer, octet_length(decode(split_part(near.parameters, ':', 2), 'base64'))
    from place left join lateral (
        select split_part(n.verifier, '$', 2) as parameters
        from (select * from postern.credential c where c.id >= place.id order by c.id limit 50) n
        where n.kind = 'scram-sha-256' and n.label = 'password' and n.revoked_at is null and postern.is_verifier(n.verifier)
        order by n.id limit 1
    ) near on true
    order by place.slot;
$$;
comment on function postern.scram_shapes is
    'For auth: what 128 verifiers look like to a client that begins SCRAM, so that those for unknown users look like them; null: none was found there.';

create function postern.credential_upgrade(p_credential bigint, p_old_verifier text, p_new_verifier text) returns boolean
language plpgsql security definer set search_path = postern, pg_temp as $$
begin
    update postern.credential set kind = 'scram-sha-256', verifier = p_new_verifier
        where id = p_credential and kind = 'crypt' and verifier = p_old_verifier and revoked_at is null
            and postern.is_verifier(p_new_verifier);
    return found;
end
$$;
comment on function postern.credential_upgrade is
    'For auth: swaps an imported hash for a verifier of the same password, if it is still that hash. No other verifier can auth write.';

drop function postern.credential_used(bigint);
create function postern.credentials_used(p_credentials bigint[], p_seconds_ago integer[]) returns void
language plpgsql security definer set search_path = postern, pg_temp as $$
begin
    perform set_config('synchronous_commit', 'off', true);
    -- Waits for nobody: what an admin changes at this moment is noted at its next login.
    update postern.credential c set last_used_at = due.at
        from (
            select o.id, u.at from unnest(p_credentials, p_seconds_ago) as n(id, ago),
                lateral (select date_trunc('minute', now() - n.ago * interval '1 second') as at) u,
                lateral (
                    select t.id from postern.credential t where t.id = n.id and (t.last_used_at is null or t.last_used_at < u.at)
                    for no key update skip locked
                ) o
        ) due
        where c.id = due.id;
end
$$;
comment on function postern.credentials_used is 'For auth: notes logins, many at a time, by the minute.';

grant select on postern.credential_overview to postern_admin;
grant execute on function postern.account_import, postern.app_password_create, postern.certificate_grant to postern_admin;
grant execute on function postern.auth_lookup, postern.scram_shapes, postern.credential_upgrade, postern.credentials_used to postern_auth;
reset role;
