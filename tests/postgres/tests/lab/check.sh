#!/bin/sh
# Compares the orders in the database of $SERVICE with what clients were told (standard input): each that was acknowledged is there
# once, as it was sent, and was told to others; of the others, some may be.
sql() { runuser --user postgres -- psql --no-psqlrc --quiet --tuples-only --no-align --set=ON_ERROR_STOP=1 "$SERVICE"; }

for _ in $(seq 60); do
    [ "$(echo 'select count(*) from outbox where sent_at is null' | sql)" -gt 0 ] || break
    sleep 0.5
done

counts=$({
    echo "create temporary table told (reference text primary key, acknowledged boolean not null);"
    echo "copy told from stdin with (delimiter ' ');"
    sed -n 's|^POST /orders ||p'
    echo '\.'
    cat <<'END'
create temporary table kept as
select reference, count(*) as times, bool_and(item = 'coffee' and quantity = 1) as right from orders group by reference;
create temporary table sent as
select message::json ->> 'reference' as reference, bool_and(sent_at is not null) as all from outbox group by 1;
select
    count(*) filter (where acknowledged),
    count(*) filter (where acknowledged and (times is null or times <> 1 or not kept.right)),
    count(*) filter (where not acknowledged),
    count(*) filter (where not acknowledged and times = 1),
    count(*) filter (where times > 1),
    count(*) filter (where times > 0 and sent.all is not true),
    (select count(*) from sent left join kept using (reference) where kept.reference is null),
    (select count(*) from kept left join told using (reference) where told.reference is null)
from told left join kept using (reference) left join sent using (reference);
END
} | sql)

IFS='|' read -r acknowledged missing others there twice untold phantom unknown <<END
$counts
END
if [ "$acknowledged" -gt 0 ] && [ $((missing + twice + untold + phantom + unknown)) -eq 0 ]; then
    echo "$acknowledged orders were acknowledged: each is there once, as it was sent, and was told to others. $others were not, and"
    echo "$there of them are there."
else
    echo "Of $acknowledged orders that were acknowledged $missing are not there as they were sent. $twice are there twice, $untold were not told"
    echo "to others, $phantom were told and are not there, $unknown nobody has sent."
    exit 1
fi
