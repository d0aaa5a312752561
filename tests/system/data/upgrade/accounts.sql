-- SPDX-License-Identifier: ISC
-- What a database may hold that 0001_accounts.sql has made: every state, kind and shape.
select postern.plan_set('small', message_bytes => 1000000, recipients_per_message => 10, connections => 5);
select postern.account_create('old@example.org', 'secret-old', 'small');
select postern.account_create('Never.Used@Example.ORG');
select postern.account_create('verified', 'SCRAM-SHA-256$4096:' || repeat('A', 22) || '==$' || repeat('A', 43) || '=:' || repeat('A', 43) || '=');
select postern.account_create('suspended@example.org', 'secret-2');
select postern.account_suspend('suspended@example.org', 'sends spam; "ticket" 7');
select postern.account_create('closed@example.org', 'secret-3');
select postern.account_close('closed@example.org');
update postern.account set route = 'isp' where login = 'verified';
select postern.account_set_password('old@example.org', 'secret-old');
select postern.app_password_create('old@example.org', 'phone', now() + interval '1 year');
select postern.app_password_create('old@example.org', 'fair', now() - interval '1 day');
select postern.app_password_create('old@example.org', 'lost');
select postern.credential_revoke('old@example.org', 'lost');
update postern.credential set last_used_at = now() - interval '1 hour' where label = 'phone';
select postern.sender_grant('old@example.org', p) from unnest(array['info@example.org', '@shop.example', '@.shop.example', 'old+*@example.org']) p;
select postern.dkim_key_add('old.example', 's1', 'rsa-sha256', '-----BEGIN PRIVATE KEY-----', 'v=DKIM1; p=x');
select postern.dkim_key_add('old.example', 's2', 'rsa-sha256', '-----BEGIN PRIVATE KEY-----', 'v=DKIM1; p=x');
