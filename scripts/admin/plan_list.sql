-- SPDX-License-Identifier: ISC
-- All plans, with their limits.
--
--   psql -f scripts/admin/plan_list.sql
\set ON_ERROR_STOP on
select p.*, (select array_agg(l.amount || ' ' || l.measure || ' per ' || l.per order by l.measure, l.per)
        from postern.rate_limit l where l.plan = p.name) as limits
    from postern.plan p order by p.name;
