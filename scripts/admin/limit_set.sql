-- SPDX-License-Identifier: ISC
-- Limits what an account may send in an interval; in force at its next message.
--
--   psql -v login=alice@example.org -v measure=messages -v per='1 hour' -v amount=100 -f scripts/admin/limit_set.sql
--
-- measure: messages, recipients, bytes or new_recipients. An empty amount removes the limit; then that of the plan counts.
\set ON_ERROR_STOP on
select postern.limit_set(:'login', :'measure', :'per'::interval, nullif(:'amount', '')::bigint);
