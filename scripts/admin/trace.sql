-- SPDX-License-Identifier: ISC
-- The whole story of a message, by its id or by its Message-ID.
--
--   psql -v id='<20261124.1@example.org>' -f scripts/admin/trace.sql
\set ON_ERROR_STOP on
select * from postern.trace(:'id');
