-- SPDX-License-Identifier: ISC
-- What a database may hold that 0008_history.sql has made.
select postern.history_write('gateway.test /var/spool/postern', 7, 1, t.us, false,
    array[(a.id, 2000, 2, t.us - 2000000, 'aaaaaaaaaaaaaaaa', a.login, 's1', 'info@example.org', 'example.org', 'm1@example.org')]::postern.history_message[],
    array[(1, 1, t.us - 1000000, a.id, 12345, 'aaaaaaaaaaaaaaaa', 'delivered', 'bob@example.net', 'up', 'mx.example.net', 's1', null, '250 2.0.0 Ok'),
        (2, 1, t.us - 1000000, 0, 12346, 'aaaaaaaaaaaaaaaa', 'refused', 'eve@example.net', 'up', 'mx.example.net', 's1', 'bbbbbbbbbbbbbbbb', '550 5.1.1 no')]::postern.history_delivery[],
    array[t.us - 9000000, t.us - 8000000, 3])
    from postern.account a, (select (extract(epoch from now()) * 1000000)::bigint as us) t where a.login = 'old@example.org';
