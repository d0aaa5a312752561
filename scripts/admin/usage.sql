-- SPDX-License-Identifier: ISC
-- What an account has used of its limits, now; next_at: when a full one has room for one more.
--
--   psql -v login=alice@example.org -f scripts/admin/usage.sql
\set ON_ERROR_STOP on
select * from postern.usage(:'login');
