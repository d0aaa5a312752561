-- SPDX-License-Identifier: ISC
-- Lets a suspended account log in again, and its queued mail go.
--
--   psql -v login=alice@example.org -f scripts/admin/account_resume.sql
\set ON_ERROR_STOP on
select postern.account_resume(:'login');
