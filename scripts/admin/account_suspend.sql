-- SPDX-License-Identifier: ISC
-- Suspends an account: no new logins, live sessions are closed.
--
--   psql -v login=alice@example.org -v reason='sends spam, ticket 4711' -f scripts/admin/account_suspend.sql
\set ON_ERROR_STOP on
select postern.account_suspend(:'login', :'reason');
