-- SPDX-License-Identifier: ISC
-- Takes one password or certificate back: that of a device by its label, or label=password.
--
--   psql -v login=alice@example.org -v label=phone -f scripts/admin/credential_revoke.sql
\set ON_ERROR_STOP on
select postern.credential_revoke(:'login', :'label');
