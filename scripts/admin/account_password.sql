-- SPDX-License-Identifier: ISC
-- Sets the password of an account; its live sessions are closed.
--
--   psql -v login=alice@example.org -f scripts/admin/account_password.sql
--
-- Asks for the password, or takes it from the variable POSTERN_PASSWORD of the environment.
\set ON_ERROR_STOP on
\getenv password POSTERN_PASSWORD
\if :{?password} \else
    \prompt 'Password: ' password
\endif
select postern.account_set_password(:'login', :'password');
