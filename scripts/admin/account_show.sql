-- SPDX-License-Identifier: ISC
-- An account at a glance: state, plan, route, passwords, last login, senders, its number.
--
--   psql -x -v login=alice@example.org -f scripts/admin/account_show.sql
\set ON_ERROR_STOP on
select * from postern.account_overview
    where lower(login collate "C") = lower(:'login' collate "C");
