-- SPDX-License-Identifier: ISC
-- What a database may hold that 0005_networks.sql has made.
select postern.network_grant('old@example.org', n) from unnest(array['192.0.2.0/24', '198.51.100.7', '2001:db8::/32']::cidr[]) n;
