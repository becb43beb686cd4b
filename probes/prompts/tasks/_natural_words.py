"""What the natural register says: cities and objects for facts, English prose between them.

No key, town or value appears in the prose.
"""

NATURAL: dict[str, tuple[str, ...]] = {
    kind: tuple(text.split())
    for kind, text in {
        "keys": """Paris London Rome Berlin Madrid Vienna Lisbon Dublin Athens Moscow Tokyo Cairo
            Boston Chicago Denver Dallas Houston Seattle Miami Toronto Sydney Delhi Lima Oslo
            Prague Warsaw Budapest Helsinki Stockholm Copenhagen""",
        "towns": """Milan Munich Venice Florence Geneva Hamburg Barcelona Manchester Oxford
            Cambridge Liverpool Glasgow Edinburgh Bristol Phoenix Detroit Atlanta Portland Austin
            Cleveland Melbourne Montreal Vancouver Shanghai Singapore Mumbai""",
        "values": """hammer needle violin anchor arrow shield sword flute drum piano trumpet basket
            mirror candle lantern compass telescope camera umbrella bottle kettle spoon knife
            pencil notebook blanket pillow carpet ladder rope bell whistle coin ring crown mask
            helmet glove scarf button bucket broom shovel saw axe wheel engine clock globe vase
            statue painting puzzle kite balloon guitar harp ball hat wallet""",
        "arguments": """data name file value test line user default request path output node item
            model text version string field start number index error context image message size
            event state parser end form query label run action target array code table source
            config first options module status group content client last read command base format
            color order match tag title parent session server host date mode project page header
            task shape load port resource root""",
    }.items()
}
# The capital's country, for questions that do not name the city.
CAPITALS = (
    ("Paris", "the capital of France"), ("London", "the capital of England"),
    ("Rome", "the capital of Italy"), ("Berlin", "the capital of Germany"),
    ("Madrid", "the capital of Spain"), ("Vienna", "the capital of Austria"),
    ("Lisbon", "the capital of Portugal"), ("Dublin", "the capital of Ireland"),
    ("Athens", "the capital of Greece"), ("Moscow", "the capital of Russia"),
    ("Tokyo", "the capital of Japan"), ("Cairo", "the capital of Egypt"),
)  # fmt: skip

PROSE = tuple(
    line.strip()
    for line in """The rain had stopped by the time the last guests left the table.
    Nobody in the valley could remember a winter that was as long as this one.
    She had learned to read the weather from the color of the hills in the evening.
    Most of the letters were never answered, and the rest were lost in the post.
    It takes patience to grow apples where the wind comes straight from the sea.
    The children waited at the gate until the teacher called them inside.
    A good meal, he used to say, begins with a walk to the market.
    The library was quiet, and the light fell softly on the old wooden shelves.
    Farmers in this part of the country plant their beans early in the spring.
    We drove for hours without meeting a single person on the road.
    The museum closes early on Mondays, so they decided to visit the gardens first.
    Her grandmother had kept the recipe to herself for more than forty years.
    When the river rises, the people move their animals to higher ground.
    The new bridge made the way to school much shorter for everyone.
    He wrote a few lines every morning before the rest of the house woke up.
    The forest grows back slowly after a fire, beginning with grass and small flowers.
    There is a bakery around the corner that sells warm bread until noon.
    The meeting lasted all afternoon, but very little was decided in the end.
    Birds that spend the summer here fly south when the days become short.
    The old man told the same story every year, and every year it grew longer.
    Prices went up again in the autumn, and many families had to save.
    From the top of the tower you can see the fields and the lake behind them.
    The train was late, as it often was when there was snow in the mountains.
    Music came from an open window on the other side of the street.
    They had planned to stay for a week and remained for the rest of their lives.
    The doctor advised him to rest, to drink water and to go for short walks.
    In the evening the fishermen bring their boats back to the harbor.
    Some of the oldest trees in the park were planted two hundred years ago.
    The students asked many questions, and the lecture ended an hour late.
    It was the first time that she had seen the ocean from so close.
    The house stood empty for a long time before a young couple bought it.
    Good shoes matter more on a long journey than a heavy bag.
    The village has one shop, one school and a church with a small tower.
    Every summer the neighbors help each other to bring in the hay.
    He had never liked the city, but he missed the noise when it was gone.
    The soup needs salt, a little butter and another ten minutes on the stove.""".splitlines()
)
