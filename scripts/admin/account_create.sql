-- SPDX-License-Identifier: ISC
-- Makes an account. It may send as its login if that is an address.
--
--   psql -v login=alice@example.org [-v plan=default] -f scripts/admin/account_create.sql
--
-- Asks for the password (or a ready verifier, SCRAM-SHA-256$...), or takes it from the variable
-- POSTERN_PASSWORD of the environment.
\set ON_ERROR_STOP on
\if :{?plan} \else
    \set plan default
\endif
\ir password.psql
select postern.account_create(:'login', (select convert_from(decode(hex, 'hex'), pg_client_encoding()) from secret), :'plan') as account;
commit;
