-- SPDX-License-Identifier: ISC
-- What a database may hold that 0002_limits.sql has made.
select postern.plan_limit_set('small', 'messages', '1 hour', 1000);
select postern.plan_limit_set('small', 'recipients', '1 day', 5000);
select postern.limit_set('old@example.org', 'messages', '1 hour', 2000);
select postern.limit_set('old@example.org', 'bytes', '12 seconds', 1000000000);
select verdict from postern.admit(array(select id from postern.account where login = 'old@example.org'), '{1}', '{2}', '{3000}');
