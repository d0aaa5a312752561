-- SPDX-License-Identifier: ISC
-- What an account has used of its limits, now.
--
--   psql -v login=alice@example.org -f scripts/admin/usage.sql
\set ON_ERROR_STOP on
select measure, per, used, amount from postern.usage(:'login');
