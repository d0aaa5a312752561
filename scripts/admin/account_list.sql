-- SPDX-License-Identifier: ISC
-- Accounts in order of their logins, those of one state or plan, or whose login is like something;
-- the last column is its number, which the list of the queue and account.held in the log have.
--
--   psql [-v like='%@example.org'] [-v state=suspended] [-v plan=default] -f scripts/admin/account_list.sql
\set ON_ERROR_STOP on
\if :{?like} \else
    \set like '%'
\endif
\if :{?state} \else
    \set state ''
\endif
\if :{?plan} \else
    \set plan ''
\endif
select * from postern.account_overview
    where login ilike :'like' and (:'state' = '' or state = :'state') and (:'plan' = '' or plan = :'plan') order by login;
