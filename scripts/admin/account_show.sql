-- SPDX-License-Identifier: ISC
-- An account at a glance: state, plan, route, passwords, last login, senders.
--
--   psql -x -v login=alice@example.org -f scripts/admin/account_show.sql
\set ON_ERROR_STOP on
select postern.account_id(:'login') as account, o.* from postern.account_overview o
    where lower(o.login collate "C") = lower(:'login' collate "C");
