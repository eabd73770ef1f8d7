-- Step test of the rotation: log in as the account of the pending version, on the same server.
\set ON_ERROR_STOP on
\set input `cat`
select format('postgresql://%s:%s@', max(code) filter (where key = 'username'), max(code) filter (where key = 'password')) as login
from (
  select key, regexp_replace(encode(convert_to(value, 'UTF8'), 'hex'), '(..)', '%\1', 'g') as code
  from json_each_text((:'input'::json #>> '{Pending,SecretData}')::json)
) as fields
\gset
\connect -reuse-previous=on :login
select 1;
