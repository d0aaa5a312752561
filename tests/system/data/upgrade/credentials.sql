-- SPDX-License-Identifier: ISC
-- What a database may hold that 0004_credentials.sql has made.
select postern.account_import('hashed@example.org', '{SSHA256}'
    || translate(encode(sha256(convert_to('secret-5', 'UTF8') || '\x0102030405060708') || '\x0102030405060708', 'base64'), E'\n', ''));
select postern.app_password_create('old@example.org', 'server', array['PLAIN'], array['192.0.2.0/24']::cidr[], 'info@example.org', now() + interval '1 year');
select postern.certificate_grant('old@example.org', repeat('ab', 32), 'certificate');
