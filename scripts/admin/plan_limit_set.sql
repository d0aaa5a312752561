-- SPDX-License-Identifier: ISC
-- Limits what every account of a plan may send in an interval; an account's own limit goes before.
--
--   psql -v plan=small -v measure=messages -v per='1 hour' -v amount=100 -f scripts/admin/plan_limit_set.sql
--
-- measure: messages, recipients, bytes or new_recipients. An empty amount removes the limit.
\set ON_ERROR_STOP on
select postern.plan_limit_set(:'plan', :'measure', :'per'::interval, nullif(:'amount', '')::bigint);
