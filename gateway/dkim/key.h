/* SPDX-License-Identifier: ISC */
/* A private key as key.c and sign.c share it. */
#pragma once

#include <gnutls/abstract.h>

#include "gateway/dkim/dkim.h"

struct dkim_key {
	_Atomic unsigned refs;
	enum dkim_algorithm algorithm;
	gnutls_privkey_t private; /* GnuTLS allows several threads to sign with it */
	gnutls_pubkey_t public;
};
