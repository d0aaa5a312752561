-- SPDX-License-Identifier: ISC
-- Makes accounts from a CSV file of another system: login,hash,plan. The hash of a password as
-- crypt(3) or LDAP write it ($6$, $y$, $2b$, {SSHA}, {SSHA256}, {SSHA512}) becomes a verifier of
-- our own at the first login with PLAIN or LOGIN.
--
--   psql -f scripts/admin/accounts_import.sql < accounts.csv
--
-- The first line names the columns. All accounts or none; every bad line is told, with the reason.
-- An empty hash or plan: refused, and the plan "default". Lines are counted as if no value went over several.
\set ON_ERROR_STOP on
\set QUIET on
begin;
create temporary table incoming (line bigint generated always as identity (start 2), login text, hash text, plan text)
    on commit drop;
\copy incoming (login, hash, plan) from pstdin with (format csv, header match)
do $$
declare
    r record;
    bad bigint := 0;
    hint text;
begin
    for r in select * from incoming order by line loop
        begin
            perform postern.account_import(r.login, r.hash, coalesce(r.plan, 'default'));
        exception when others then
            get stacked diagnostics hint = pg_exception_hint;
            bad := bad + 1;
            raise warning 'line %: %', r.line, sqlerrm using hint = hint;
        end;
    end loop;
    if bad > 0 then
        raise exception '% of % lines are bad: no account was made', bad, (select count(*) from incoming)
            using hint = 'Correct them in the file and give it again.';
    end if;
end
$$;
select count(*) as accounts from incoming;
commit;
