-- SPDX-License-Identifier: ISC
-- Closes an account for good: no logins, live sessions are closed, its login stays taken.
--
--   psql -v login=alice@example.org -f scripts/admin/account_close.sql
\set ON_ERROR_STOP on
select postern.account_close(:'login');
