-- SPDX-License-Identifier: ISC
-- Takes an address back that sender_grant.sql has given.
--
--   psql -v login=alice@example.org -v sender=@shop.example -f scripts/admin/sender_revoke.sql
\set ON_ERROR_STOP on
select postern.sender_revoke(:'login', :'sender');
