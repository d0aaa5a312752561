-- SPDX-License-Identifier: ISC
-- Lets an account send as an address: user@domain, @domain (anybody there), @.domain (any
-- subdomain), user+*@domain (any tag).
--
--   psql -v login=alice@example.org -v sender=@shop.example -f scripts/admin/sender_grant.sql
\set ON_ERROR_STOP on
select postern.sender_grant(:'login', :'sender');
