-- SPDX-License-Identifier: ISC
-- Suspends an account: no new logins, live sessions are closed, its queued mail is held. The reason
-- is told to whoever logs in with the right password.
--
--   psql -v login=alice@example.org -v reason='sends spam, ticket 4711' -f scripts/admin/account_suspend.sql
\set ON_ERROR_STOP on
select postern.account_suspend(:'login', :'reason');
