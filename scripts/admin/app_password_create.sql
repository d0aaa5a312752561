-- SPDX-License-Identifier: ISC
-- Makes a password for one device, shown this once, for PLAIN and LOGIN; at most 32 an account, with
-- the main one. Each of these ties it: to mechanisms, to networks of its client, to one sender, to an end.
--
--   psql -v login=alice@example.org -v label=phone [-v mechanisms=PLAIN,LOGIN] [-v networks=192.0.2.0/24,2001:db8::/32] [-v sender=alice@example.org] [-v expires='2027-01-01'] -f scripts/admin/app_password_create.sql
\set ON_ERROR_STOP on
\if :{?mechanisms} \else
    \set mechanisms ''
\endif
\if :{?networks} \else
    \set networks ''
\endif
\if :{?sender} \else
    \set sender ''
\endif
\if :{?expires} \else
    \set expires ''
\endif
select postern.app_password_create(:'login', :'label', string_to_array(nullif(:'mechanisms', ''), ','),
    string_to_array(nullif(:'networks', ''), ',')::cidr[], nullif(:'sender', ''), nullif(:'expires', '')::timestamptz) as password;
