-- SPDX-License-Identifier: ISC
-- Makes an account. It may send as its login if that is an address.
--
--   psql -v login=alice@example.org [-v plan=default] -f scripts/admin/account_create.sql
--
-- Asks for the password, or takes it from the variable POSTERN_PASSWORD of the environment.
\set ON_ERROR_STOP on
\getenv password POSTERN_PASSWORD
\if :{?password} \else
    \prompt 'Password: ' password
\endif
\if :{?plan} \else
    \set plan default
\endif
select postern.account_create(:'login', :'password', :'plan') as account;
