-- SPDX-License-Identifier: ISC
-- Lets a customer's servers send as the account without a login, because of where they are; on
-- listeners with networks = true alone.
--
--   psql -v login=alice@example.org -v network=192.0.2.0/24 -f scripts/admin/network_grant.sql
\set ON_ERROR_STOP on
select postern.network_grant(:'login', :'network');
