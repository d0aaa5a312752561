-- SPDX-License-Identifier: ISC
-- Makes a password for one device, shown this once; at most 32 an account, with the main one.
--
--   psql -v login=alice@example.org -v label=phone [-v expires='2027-01-01'] -f scripts/admin/app_password_create.sql
\set ON_ERROR_STOP on
\if :{?expires} \else
    \set expires ''
\endif
select postern.app_password_create(:'login', :'label', nullif(:'expires', '')::timestamptz) as password;
