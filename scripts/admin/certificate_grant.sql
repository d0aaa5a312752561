-- SPDX-License-Identifier: ISC
-- Lets an account log in by EXTERNAL with a client certificate, named by its SHA-256 fingerprint:
-- openssl x509 -in client.crt -noout -fingerprint -sha256. credential_revoke.sql takes it back.
--
--   psql -v login=alice@example.org -v fingerprint=3A:5C:... -v label=server -f scripts/admin/certificate_grant.sql
\set ON_ERROR_STOP on
select postern.certificate_grant(:'login', :'fingerprint', :'label');
