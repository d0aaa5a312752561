-- SPDX-License-Identifier: ISC
-- Takes a network back that network_grant.sql has given.
--
--   psql -v login=alice@example.org -v network=192.0.2.0/24 -f scripts/admin/network_revoke.sql
\set ON_ERROR_STOP on
select postern.network_revoke(:'login', :'network');
