-- SPDX-License-Identifier: ISC
-- An account at a glance: state, plan, route, passwords, last login, senders, its number.
--
--   psql -x -v login=alice@example.org -f scripts/admin/account_show.sql
\set ON_ERROR_STOP on
-- Says so when there is none.
select postern.account_id(:'login') as account \gset
select * from postern.account_overview where account = :account;
