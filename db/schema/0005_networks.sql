-- SPDX-License-Identifier: ISC
-- Who somebody is without a password: by the network that his server stands in, or by the
-- certificate that it shows.

set role postern_owner;

-- ---- networks ----

create table postern.network (
    cidr cidr primary key,
    account bigint not null references postern.account on delete cascade,
    -- No single customer has more: 10.0.0.0/8, and the largest allocations of the registries in IPv6.
    constraint network_is_small check (masklen(cidr) >= case family(cidr) when 4 then 8 else 19 end)
);
create index network_account on postern.network (account);
comment on table postern.network is 'Networks whose servers send as an account without a login, on listeners with networks = true.';
comment on index postern.network_account is 'Finds the networks of an account.';
comment on column postern.network.cidr is 'The network; of nested ones the smallest that holds an address counts.';
comment on column postern.network.account is 'Whose servers stand in it.';

-- In the order of networks a larger one comes before those in it. The last one up to an address holds
-- it, or stands beside it in all that hold both: so the next candidate is the last one up to the
-- smallest that could. An index of type gist has to look in several places, in more of them the more
-- networks there are.
create function postern.network_holding(p_part inet) returns postern.network
language plpgsql stable security definer set search_path = postern, pg_temp as $$
declare
    candidate postern.network;
    up_to inet := p_part;
begin
    loop
        select * into candidate from postern.network n where n.cidr <= up_to order by n.cidr desc limit 1;
        if not found or family(candidate.cidr) <> family(p_part) then
            return null;
        end if;
        if candidate.cidr >>= p_part then
            return candidate;
        end if;
        up_to := inet_merge(candidate.cidr, p_part);
    end loop;
end
$$;
comment on function postern.network_holding is 'The smallest network that holds this address or network; null: none.';

create function postern.tell_network() returns trigger
language plpgsql security definer set search_path = postern, pg_temp as $$
declare
    larger postern.network;
begin
    if tg_op = 'DELETE' then
        perform pg_notify('postern', 'account ' || old.account);
        return old;
    end if;
    perform pg_notify('postern', 'account ' || new.account);
    -- Its servers may have been another account's until now.
    larger := postern.network_holding(new.cidr);
    if larger.account is not null then
        perform pg_notify('postern', 'account ' || larger.account);
    end if;
    return new;
end
$$;
comment on function postern.tell_network is 'Trigger: servers of a network are somebody else from now on.';
create trigger tell before insert or delete on postern.network
    for each row execute function postern.tell_network();
comment on trigger tell on postern.network is 'Running processes forget whose addresses these are.';

create function postern.network_grant(login text, cidr inet) returns void
language plpgsql security definer set search_path = postern, pg_temp as $$
declare
    a constant bigint := (postern.account_locked(login)).id;
    wanted constant cidr := network(network_grant.cidr);
    there constant postern.network := postern.network_holding(wanted);
begin
    if network_grant.cidr is distinct from wanted::inet then
        raise exception '"%" is no network: it has bits behind its mask', network_grant.cidr
            using hint = format('For the network: %s; for the one address: %s.', wanted, host(network_grant.cidr));
    end if;
    if there.cidr = wanted and there.account = a then
        return;
    end if;
    if there.cidr = wanted then
        raise exception 'the network % is another account''s', wanted
            using hint = format('select login from postern.network_overview where cidr = %L; then postern.network_revoke.', wanted);
    end if;
    if (select count(*) >= 500 from postern.network n where n.account = a) then
        raise exception 'the account "%" has 500 networks already', login
            using hint = 'Grant a larger one that holds them; take one back: postern.network_revoke.';
    end if;
    insert into postern.network (cidr, account) values (wanted, a);
    perform postern.note('network_grant', login, postern.changed('network', null, wanted::text));
exception
    when check_violation then
        raise exception 'the network % is too large: whoever is in it could send as "%"', wanted, login
            using hint = 'At most a /8 of IPv4 or a /19 of IPv6; grant the networks that this customer''s servers stand in.';
    when not_null_violation then
        raise exception 'no network was given' using hint = '192.0.2.0/24, 192.0.2.1 or 2001:db8::/32';
    when unique_violation then
        raise exception 'the network % was granted at this moment', wanted using hint = 'Look in postern.network_overview.';
end
$$;
comment on function postern.network_grant is
    'Lets the servers of a network send as an account without a login, on listeners with networks = true. At most 500 networks an account.';

create function postern.network_revoke(login text, cidr inet) returns void
language plpgsql security definer set search_path = postern, pg_temp as $$
begin
    delete from postern.network n where n.account = postern.account_id(login) and n.cidr = network_revoke.cidr;
    if not found then
        raise exception 'the account "%" has no network %', login, network_revoke.cidr
            using hint = 'select login, cidr from postern.network_overview order by 1, 2;';
    end if;
    perform postern.note('network_revoke', login, postern.changed('network', network_revoke.cidr::cidr::text, null));
end
$$;
comment on function postern.network_revoke is 'Takes a network back; sessions of its servers end.';

create view postern.network_overview as
    select a.login, n.cidr from postern.network n join postern.account a on a.id = n.account;
comment on view postern.network_overview is 'Whose servers send without a login from where.';
comment on column postern.network_overview.login is 'Whose servers they are.';
comment on column postern.network_overview.cidr is 'Where they stand.';

create function postern.network_lookup(p_address inet) returns text
language plpgsql stable security definer set search_path = postern, pg_temp as $$
declare
    n constant postern.network := postern.network_holding(p_address);
begin
    return (select a.login from postern.account a where a.id = n.account);
end
$$;
comment on function postern.network_lookup is 'For auth: login of the account whose server has that address, for auth_lookup; null: nobody''s.';

-- ---- certificates ----

create function postern.certificate_lookup(p_fingerprint text) returns table (login text, credential bigint)
language plpgsql stable security definer set search_path = postern, pg_temp as $$
begin
    return query select a.login, c.id from postern.credential c join postern.account a on a.id = c.account
        where c.kind = 'certificate' and c.verifier = p_fingerprint and c.revoked_at is null
            and (c.expires_at is null or c.expires_at > now());
end
$$;
comment on function postern.certificate_lookup is
    'For auth: whose certificate it is, by its SHA-256 in lower-case hex: the login, for auth_lookup, and the credential.';

grant select on postern.network_overview to postern_admin;
grant execute on function postern.network_grant, postern.network_revoke to postern_admin;
grant execute on function postern.network_lookup, postern.certificate_lookup to postern_auth;
reset role;
