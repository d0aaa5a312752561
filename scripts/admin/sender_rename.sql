-- SPDX-License-Identifier: ISC
-- Gives an account one address in the place of another: both in one transaction, so that there is
-- no moment without either.
--
--   psql -v login=alice@example.org -v old=info@shop.example -v new=sales@shop.example -f scripts/admin/sender_rename.sql
\set ON_ERROR_STOP on
\set QUIET on
begin;
select postern.sender_revoke(:'login', :'old');
select postern.sender_grant(:'login', :'new');
commit;
