-- Step set of the rotation: the account of the pending version gets its password. Standard input has
-- both versions, as JSON. It may run again and again.
\set ON_ERROR_STOP on
\set input `cat`
select format('alter role %I password %L', pending ->> 'username', pending ->> 'password')
from (select (:'input'::json #>> '{Pending,SecretData}')::json as pending) as p
\gexec
