-- SPDX-License-Identifier: ISC
-- Sends the mail of an account by an upstream of its own; without one by the default route again.
--
--   psql -v login=alice@example.org [-v route=isp] -f scripts/admin/account_route.sql
\set ON_ERROR_STOP on
\if :{?route} \else
    \set route ''
\endif
select postern.account_set_route(:'login', nullif(:'route', ''));
