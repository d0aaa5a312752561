-- SPDX-License-Identifier: ISC
-- What admins did, the last first: with an account, a plan or a domain, or with anything.
--
--   psql [-v object=alice@example.org] [-v count=50] -f scripts/admin/audit.sql
\set ON_ERROR_STOP on
\if :{?count} \else
    \set count 50
\endif
\if :{?object}
    select at, actor, action, object, detail from postern.audit
        where object in (:'object', (select login from postern.account_overview where lower(login collate "C") = lower(:'object' collate "C")))
        order by at desc limit :'count'::bigint;
\else
    select at, actor, action, object, detail from postern.audit order by at desc limit :'count'::bigint;
\endif
