"""Words that can stand for one another in a caption: what an edited prompt is made from.

Every row of a table is one meaning with its spellings; words in the same table but different rows are different things
of the same sort, so replacing one by the other changes the meaning and little else.
"""

from __future__ import annotations

_PEOPLE = """
man,guy,gentleman|woman,lady|boy|girl|baby,toddler,infant|couple|crowd|soldier|police officer,policeman|cowboy|
clown|bride|chef|doctor|wizard|astronaut|knight|king|queen|pirate|robot|monk|warrior|princess
"""
_ANIMALS = """
dog,puppy|cat,kitten|horse,pony|cow|sheep,lamb|bird|elephant|bear|zebra|giraffe|lion|tiger|monkey|rabbit|duck|goat|
pig|fox|wolf|panda|penguin|fish|shark|whale|owl|eagle|snake|frog|turtle|mouse|butterfly|deer|camel|chicken|dragon|
dinosaur|octopus|spider
"""
_VEHICLES = """
car|bus|truck|bicycle,bike|motorcycle,motorbike|boat|ship|train|airplane,plane|helicopter|tractor|skateboard|sled|
wagon|scooter|canoe,kayak|surfboard|spaceship|rocket|tank
"""
_FOOD = """
pizza|sandwich|burger,hamburger|cake|apple|banana|orange|carrot|broccoli|hot dog|donut|salad|soup|bread|egg|steak|
lemon|strawberry|pineapple|tomato|mushroom|pumpkin|ice cream|watermelon|coffee|noodles
"""
_FURNITURE = """
chair|table|bed|couch,sofa|bench|desk|lamp|toilet|sink|refrigerator,fridge|oven|mirror|bathtub|bookshelf
"""
_THINGS = """
ball|frisbee|stick|umbrella|bag|backpack|book|phone,cell phone|laptop|camera|guitar|cup|bottle|vase|clock|hat|
suitcase|kite|tennis racket|toy|balloon|flag|flower|rope|knife|fork|spoon|bowl|keyboard|television|microphone|drum|
piano|sword|candle|bucket|teddy bear|stop sign|traffic light|wine glass|hair dryer|pair of scissors|baseball bat|
helmet|mask|crown
"""
_CLOTHES = """
shirt,t-shirt|jacket,coat|dress|suit|uniform|shorts|pants,trousers|jeans|swimsuit|sweater,hoodie|skirt|tie|boots|
sunglasses|vest|costume|robe
"""
_PLACES = """
beach|street,road|park|forest,woods|field|mountain,mountains|river|lake|ocean,sea|city|kitchen|bedroom|bathroom|
office|snow|desert|pool|stadium|restaurant|store,shop|playground|garden|train station|airport|library|church|castle|
bridge|jungle|cave
"""
_ACTIONS = """
running|sitting|standing|jumping|sleeping|walking|swimming|climbing|eating|dancing|reading|riding|playing|lying|
flying|driving|cooking|drinking|fighting|smiling|crying|surfing|skiing|singing|painting
"""
_COLOURS = "red|blue|green|yellow|orange|black|white|brown|pink|purple|gray,grey"
_RELATIONS = """
on the left of,to the left of|on the right of,to the right of|on top of|underneath,under,below,beneath|in front of|
behind|inside of,inside|next to,beside|above,over|far from
"""
_NUMBERS = "one|two|three|four|five|six|seven|eight|nine|ten"


def _table(rows: str) -> tuple[tuple[str, ...], ...]:
    return tuple(tuple(word.strip() for word in row.split(",")) for row in rows.replace("\n", "").split("|"))


OBJECTS = tuple(_table(rows) for rows in (_PEOPLE, _ANIMALS, _VEHICLES, _FOOD, _FURNITURE, _THINGS, _CLOTHES, _PLACES))
ACTIONS = _table(_ACTIONS)
COLOURS = _table(_COLOURS)
RELATIONS = _table(_RELATIONS)
NUMBERS = _table(_NUMBERS)
_PLURALS = """
man:men,woman:women,mouse:mice,sheep:sheep,fish:fish,deer:deer,wolf:wolves,knife:knives,policeman:policemen,
gentleman:gentlemen,baby:babies,lady:ladies,puppy:puppies,pony:ponies,butterfly:butterflies,city:cities,
library:libraries,strawberry:strawberries,sandwich:sandwiches,bus:buses,bench:benches,couch:couches,church:churches,
beach:beaches,fox:foxes,tomato:tomatoes,dress:dresses,wine glass:wine glasses
"""
IRREGULAR_PLURALS: dict[str, str] = dict(pair.split(":") for pair in _PLURALS.replace("\n", "").split(","))
_UNCOUNTABLE = """
snow bread coffee noodles soup salad shorts pants trousers jeans boots sunglasses mountains woods crowd
"""
UNCOUNTABLE = frozenset(_UNCOUNTABLE.split())
_STOP_WORDS = """
a an the and or of in on at to with by for from is are was were be being been it its his her their this that these
those as into while who which there some another other each over under up down out off near very has have having he
she they them him through around along across about made photo picture image style
"""
STOP_WORDS = frozenset(_STOP_WORDS.split())
