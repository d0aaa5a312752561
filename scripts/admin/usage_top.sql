-- SPDX-License-Identifier: ISC
-- The accounts that have used most of their limits, now. Some seconds with 200,000 of them.
--
--   psql [-v measure=messages] [-v count=20] -f scripts/admin/usage_top.sql
\set ON_ERROR_STOP on
\if :{?measure} \else
    \set measure ''
\endif
\if :{?count} \else
    \set count 20
\endif
select login, measure, per, used, amount, 100 * used / nullif(amount, 0) as percent from postern.usage_overview
    where used > 0 and (:'measure' = '' or measure = :'measure') order by percent desc nulls first, used desc, login limit :'count'::bigint;
