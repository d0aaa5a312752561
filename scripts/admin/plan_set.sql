-- SPDX-License-Identifier: ISC
-- Makes or changes a plan. What is not given is unlimited, or false.
--
--   psql -v plan=small [-v message_bytes=10485760] [-v recipients=100] [-v connections=10] [-v sign_required=true] [-v add_sender=true] -f scripts/admin/plan_set.sql
--
-- sign_required: mail waits when its domain has no DKIM key, else it leaves unsigned. add_sender: a
-- Sender is added where the header From is not the login.
\set ON_ERROR_STOP on
\if :{?message_bytes} \else
    \set message_bytes ''
\endif
\if :{?recipients} \else
    \set recipients ''
\endif
\if :{?connections} \else
    \set connections ''
\endif
\if :{?sign_required} \else
    \set sign_required false
\endif
\if :{?add_sender} \else
    \set add_sender false
\endif
select postern.plan_set(:'plan', nullif(:'message_bytes', '')::bigint, nullif(:'recipients', '')::integer,
    nullif(:'connections', '')::integer, :'sign_required'::boolean, :'add_sender'::boolean);
