-- SPDX-License-Identifier: ISC
-- Gives an account another plan; its limits count from the next message on.
--
--   psql -v login=alice@example.org -v plan=gold -f scripts/admin/account_plan.sql
\set ON_ERROR_STOP on
select postern.account_set_plan(:'login', :'plan');
