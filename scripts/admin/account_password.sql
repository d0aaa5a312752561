-- SPDX-License-Identifier: ISC
-- Sets the password of an account; its live sessions are closed.
--
--   psql -v login=alice@example.org -f scripts/admin/account_password.sql
--
-- Asks for the password (or a ready verifier, SCRAM-SHA-256$...), or takes it from the variable
-- POSTERN_PASSWORD of the environment.
\set ON_ERROR_STOP on
\ir password.psql
select postern.account_set_password(:'login', (select convert_from(decode(hex, 'hex'), pg_client_encoding()) from secret));
commit;
