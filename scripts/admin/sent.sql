-- SPDX-License-Identifier: ISC
-- What an account has sent, the last first: with the id that trace.sql and the log know.
--
--   psql -v login=alice@example.org [-v since='2026-11-01'] [-v until='2026-12-01'] -f scripts/admin/sent.sql
--
-- Without since: since the beginning of yesterday.
\set ON_ERROR_STOP on
\if :{?since} \else
    \set since yesterday
\endif
\if :{?until} \else
    \set until infinity
\endif
select accepted_at, id, sender, recipients, size, message_id from postern.message
    where account = postern.account_id(:'login') and accepted_at >= :'since'::timestamptz and accepted_at < :'until'::timestamptz
    order by accepted_at desc;
