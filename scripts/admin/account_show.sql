-- SPDX-License-Identifier: ISC
-- An account at a glance: state, plan, route, passwords, last login, senders, its number. An error when there is none.
--
--   psql -x -v login=alice@example.org -f scripts/admin/account_show.sql
\set ON_ERROR_STOP on
select postern.account_id(:'login') as account \gset
select * from postern.account_overview where account = :account;
