-- SPDX-License-Identifier: ISC
-- Makes accounts from a CSV file: login,password,plan. A password is clear text or, far faster
-- (10,000 in seconds; of clear ones some 30 a second), a ready verifier SCRAM-SHA-256$...
--
--   psql -f scripts/admin/accounts_create.sql < accounts.csv
--
-- A line that is no CSV is quoted in the server's log: check a file with clear passwords first.
-- The first line names the columns. All accounts or none; every bad line is told, with the reason.
-- An empty password or plan: none yet, and the plan "default". Lines are counted as if no value went over several.
\set ON_ERROR_STOP on
\set QUIET on
begin;
create temporary table incoming (line bigint generated always as identity (start 2), login text, password text, plan text)
    on commit drop;
\copy incoming (login, password, plan) from pstdin with (format csv, header match)
do $$
declare
    r record;
    bad bigint := 0;
    hint text;
begin
    for r in select * from incoming order by line loop
        begin
            perform postern.account_create(r.login, r.password, coalesce(r.plan, 'default'));
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
