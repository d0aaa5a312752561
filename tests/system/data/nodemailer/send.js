// SPDX-License-Identifier: ISC
// Sends one message: nodemailer's folder, its transport and the message are the arguments, in JSON.
"use strict";
const [folder, transport, message] = process.argv.slice(2).map((text) => JSON.parse(text));
require(folder)
  .createTransport(transport)
  .sendMail(message)
  .then(
    (info) => console.log(info.response),
    (error) => {
      console.error(error.message);
      process.exitCode = 1;
    }
  );
